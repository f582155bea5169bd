"""``qplug techniques``: list the techniques, or describe one."""

from __future__ import annotations

from typing import Annotated

import typer

from qplug.cli.app import Json, State, app, print_json, screen_of, show


@app.command()
def techniques(
    name: Annotated[
        str | None, typer.Argument(show_default=False, help="Technique to describe, or a plugin or paper to list.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the techniques by plugin, or describe one with its parameters."""
    State.json = as_json
    from qplug.cli.report import catalogue
    from qplug.hooks.registry import installed

    registry = installed()
    listed = catalogue.techniques(registry)
    groups = [] if name is None or name in registry.techniques else catalogue.techniques_by_plugin(registry, name)
    if as_json and name and not groups:
        print_json(catalogue.technique(registry, name))
    elif as_json:
        names = {row[0] for table in groups for row in table.rows if row[0]}
        print_json({"techniques": [row for row in listed if not groups or row["name"] in names]})
    elif groups:
        show(groups)
    elif name:
        show(catalogue.technique_tables(registry, name))
    elif screen_of().terminal:
        show(catalogue.techniques_by_plugin(registry))
    else:
        show([catalogue.techniques_table(registry)])
