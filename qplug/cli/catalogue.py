"""What is installed: ``plugins``, ``techniques``, ``schema``."""

from __future__ import annotations

from typing import Annotated

import typer

from qplug.cli.app import Json, State, app, print_json, screen_of


@app.command()
def plugins(as_json: Json = False) -> None:
    """List the plugins, those that failed to load too."""
    State.json = as_json
    from qplug.hooks.registry import installed
    from qplug.report import catalogue

    if as_json:
        print_json({"plugins": catalogue.plugins(installed())})
    else:
        screen_of().table(catalogue.plugins_table(installed()))


@app.command()
def techniques(
    name: Annotated[str | None, typer.Argument(show_default=False, help="One technique.")] = None,
    as_json: Json = False,
) -> None:
    """List the techniques, or show one with its parameters."""
    State.json = as_json
    from qplug.hooks.registry import installed
    from qplug.report import catalogue

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


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors.

    Every installed plugin's sources, techniques and backends are in it.
    """
    from qplug.hooks.registry import installed
    from qplug.recipe import json_schema

    print_json(json_schema(installed()))
