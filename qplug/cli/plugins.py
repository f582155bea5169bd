"""``qplug plugins``: list the installed plugins."""

from __future__ import annotations

from qplug.cli.app import Json, State, app, print_json, show


@app.command()
def plugins(as_json: Json = False) -> None:
    """List the installed plugins, and why a plugin failed to load."""
    State.json = as_json
    from qplug.cli.report import catalogue
    from qplug.hooks.registry import installed

    if as_json:
        print_json({"plugins": catalogue.plugins(installed())})
    else:
        show([catalogue.plugins_table(installed())])
