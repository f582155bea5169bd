"""``qplug init``: write a recipe for a model and a goal, to be changed and run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qplug.cli.app import AllowCode, Json, State, allowed_code, app, print_json, screen_of
from qplug.cli.model_and_data import Data, ModelName
from qplug.cli.model_option import Checkpoint

GOALS = {"accuracy": "w8a8", "deploy": "deploy_int8"}
"""Goal → the recipe for it; every other goal is a recipe's name."""


@app.command()
def init(
    model: ModelName = None,
    data: Data = None,
    checkpoint: Checkpoint = None,
    goal: Annotated[
        str,
        typer.Option(
            help="accuracy (8 bits), deploy (8 bits for ONNX Runtime), or a name that 'qplug recipes' lists, such as "
            "w4a8, w4a4 or mixed."
        ),
    ] = "accuracy",
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("recipe.yaml"),
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Write a recipe for a model and a goal.

    It is checked as 'qplug validate' checks it. The JSON Schema of recipes is written beside it, for editors.
    """
    State.json = as_json
    from qplug.cli.model_and_data import given
    from qplug.core.errors import InputError
    from qplug.core.storage.atomic import check_file, write_file
    from qplug.hooks.registry import installed
    from qplug.recipe import json_schema, load_recipe
    from qplug.recipe.named import is_name, recipe_file
    from qplug.recipe.write import SCHEMA, recipe_text, schema_text

    if out.exists():
        raise InputError("this file exists", where=str(out), fix="name another with --out, or remove it")
    check_file(out, "--out")
    schema = out.parent / SCHEMA
    check_file(schema, "--out")
    name = GOALS.get(goal, goal)
    path = recipe_file(name, installed().techniques)
    if not is_name(name) and path == Path(name):
        raise InputError(f"expected a goal or the name of a recipe, received {goal!r}", where="--goal")
    allowed = allowed_code(allow_code)
    base = load_recipe(path, allow_code=allowed)
    found = given(base, model, checkpoint, data, allow_code=allowed)
    load_recipe(path, found.options(), allow_code=allowed)
    write_file(out, recipe_text(path, found.values, found.left_out).encode())
    write_file(schema, schema_text(json_schema(installed())).encode())
    if as_json:
        print_json({"status": "done", "recipe": str(out), "schema": str(schema), "from": name, "notes": found.notes})
        return
    for note in found.notes:
        screen_of(sys.stderr).line(note, wrap=True)
    screen_of().line(f"{out} is written, and {schema} for editors; run it with: qplug run {out}")
