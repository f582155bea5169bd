"""``qplug schema``: print the JSON Schema of recipes."""

from __future__ import annotations

from qplug.cli.app import app, print_json


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors.

    It includes the sources, techniques and backends of all installed plugins.
    """
    from qplug.hooks.registry import installed
    from qplug.recipe import json_schema

    print_json(json_schema(installed()))
