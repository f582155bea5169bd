"""What is installed, and what a model offers: ``plugins``, ``techniques``, ``schema``, ``inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qplug.cli.app import Accounting, Json, State, app, model_source, print_json, screen_of
from qplug.conventions import DEFAULT, convention


@app.command()
def plugins(as_json: Json = False) -> None:
    """List the plugins, those that failed to load too."""
    State.json = as_json
    from qplug.registry import installed
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
    from qplug.registry import installed
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
    from qplug.recipe import json_schema
    from qplug.registry import installed

    print_json(json_schema(installed()))


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="An embedded model, timm's name, or module:function.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Weights to load.", show_default=False)] = None,
    accounting: Accounting = DEFAULT,
    as_json: Json = False,
) -> None:
    """Show what of a model can be quantised, and what it would cost.

    Sites, kinds, shapes and MACs, what stays in float, size and bit operations.
    """
    State.json = as_json
    counted_by = convention(accounting)
    source = model_source(model, checkpoint)
    from qplug.pipeline import inspect as inspect_model
    from qplug.report.inspection import inspection, inspection_tables

    found = inspect_model(source)
    if as_json:
        print_json(inspection(found, model))
        return
    screen = screen_of()
    for table in inspection_tables(found, model, counted_by):
        screen.table(table)
