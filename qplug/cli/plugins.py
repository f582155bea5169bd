"""``qplug plugins``: list what is installed."""

from __future__ import annotations

from qplug.cli.app import Json, State, app, print_json, screen_of


@app.command()
def plugins(as_json: Json = False) -> None:
    """List the plugins, those that failed to load too."""
    State.json = as_json
    from qplug.cli.report import catalogue
    from qplug.hooks.registry import installed

    if as_json:
        print_json({"plugins": catalogue.plugins(installed())})
    else:
        screen_of().table(catalogue.plugins_table(installed()))
