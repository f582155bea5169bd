"""``qplug schema``: print the JSON Schema of recipes."""

from __future__ import annotations

from typing import Annotated

import typer

from qplug.cli.app import Json, State, app, print_json, screen_of


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors.

    Every installed plugin's sources, techniques and backends are in it.
    """
    from qplug.hooks.registry import installed
    from qplug.recipe import json_schema

    print_json(json_schema(installed()))
