"""``qplug recipes``: list the recipes that come with qplug."""

from __future__ import annotations

from qplug.cli.app import Json, State, app, print_json, show


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes that come with qplug, which run and compare take by name.

    The first ones suit any model. The others are those of techniques and papers.
    """
    State.json = as_json
    from qplug.cli.report.screen import Table
    from qplug.recipe.named import description, named_recipes

    rows = [(name, description(path)) for name, path in named_recipes().items()]
    if as_json:
        print_json({"recipes": [{"name": name, "description": text} for name, text in rows]})
        return
    notes = ["qplug run NAME --model timm:MODEL --data FOLDER", "'qplug init' writes a recipe to change"]
    show([Table("Recipes", ("name", "what it does"), rows, notes=notes)])
