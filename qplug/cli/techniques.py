"""``qplug techniques``: list the techniques, or show one."""

from __future__ import annotations

from typing import Annotated

import typer

from qplug.cli.app import Json, State, app, print_json, screen_of


@app.command()
def techniques(
    name: Annotated[str | None, typer.Argument(show_default=False, help="One technique.")] = None,
    as_json: Json = False,
) -> None:
    """List the techniques, or show one with its parameters."""
    State.json = as_json
    from qplug.cli.report import catalogue
    from qplug.hooks.registry import installed

    if as_json and name:
        print_json(catalogue.technique(installed(), name))
    elif as_json:
        print_json({"techniques": catalogue.techniques(installed())})
    else:
        screen = screen_of()
        for table in (
            catalogue.technique_tables(installed(), name) if name else [catalogue.techniques_table(installed())]
        ):
            screen.table(table)
