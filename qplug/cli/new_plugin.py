"""``qplug new-plugin``: write the skeleton of a plugin package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qplug.cli.app import app, screen_of


@app.command("new-plugin")
def new_plugin(
    name: Annotated[str, typer.Argument(help="Name of the distribution, such as qplug-mine.")],
    folder: Annotated[Path, typer.Option("--dir", help="Folder to create it in.")] = Path(),
) -> None:
    """Write a working plugin package, as a start for your own."""
    from qplug.hooks import scaffold

    path = scaffold.new_plugin(name, folder)
    screen_of().line(f"wrote {path}; install it with: pip install -e {path}")
