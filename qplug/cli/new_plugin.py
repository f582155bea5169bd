"""``qplug new-plugin``: write a plugin package that works as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qplug.cli.app import app, screen_of


@app.command("new-plugin")
def new_plugin(
    name: Annotated[str, typer.Argument(help="The distribution's name, such as qplug-mine.")],
    folder: Annotated[Path, typer.Option("--dir", help="The folder to make it in.")] = Path(),
) -> None:
    """Write a plugin of your own, which works as it is."""
    from qplug.hooks import scaffold

    path = scaffold.new_plugin(name, folder)
    screen_of().line(f"wrote {path}; install it with: pip install -e {path}")
