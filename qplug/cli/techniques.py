"""``qplug techniques``: list the techniques, or describe one."""

from __future__ import annotations

from typing import Annotated

import typer

from qplug.cli.app import Json, State, app, print_json, show


@app.command()
def techniques(
    name: Annotated[str | None, typer.Argument(show_default=False, help="Technique to describe.")] = None,
    as_json: Json = False,
) -> None:
    """List the techniques, or describe one with its parameters."""
    State.json = as_json
    from qplug.cli.report import catalogue
    from qplug.hooks.registry import installed

    if as_json and name:
        print_json(catalogue.technique(installed(), name))
    elif as_json:
        print_json({"techniques": catalogue.techniques(installed())})
    else:
        registry = installed()
        show(catalogue.technique_tables(registry, name) if name else [catalogue.techniques_table(registry)])
