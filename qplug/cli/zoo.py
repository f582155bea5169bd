"""``qplug zoo``: train a model of the zoo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qplug.cli.app import Application, app, screen_of

zoo = Application(help="Train the small models of the zoo.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(zoo, name="zoo")


@zoo.command("train")
def zoo_train(
    name: Annotated[str, typer.Argument(help="Model of the zoo, such as vit_digits.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of parquet files of the splits train and test; not needed for digits.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the data.", show_default="the model's own")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights, the order of images and augmentation.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Safetensors file to write.", show_default="NAME.safetensors")
    ] = None,
) -> None:
    """Train a model of the zoo, and print its accuracy."""
    from qplug.cli.report.progress import Progress
    from qplug.models.zoo import ZOO
    from qplug.training.supervised.zoo import train

    out = out or Path(f"{name}.safetensors")
    with Progress(sys.stderr) as progress:

        def advance(done: int, total: int) -> None:
            progress.advance(f"train {name}", done, total)

        accuracy = train(name, out, data=data, epochs=epochs, seed=seed, progress=advance)
    score = "AP of masks" if ZOO[name].data == "shapes" else "top-1"
    screen_of().line(f"{name}: {100 * accuracy:.2f} % {score} on held-out images; weights written to {out}")
