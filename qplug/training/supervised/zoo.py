"""Training of the zoo's embedded checkpoints, for ``qplug zoo train``.

The loop is separate from ``qplug.training.supervised.loop``: it needs no recipe, and it must reproduce the checkpoints.
Both share the learning-rate schedule.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qplug.core.errors import InputError
from qplug.core.storage.atomic import write_file
from qplug.models.zoo import ZOO, Entry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qplug.core.examples import Examples

BATCH = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1
WARMUP = 0.05
SPLITS: tuple[Literal["train"], Literal["test"]] = ("train", "test")


def train(
    name: str,
    out: Path,
    *,
    data: Path | None = None,
    epochs: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Train a model of the zoo on the training split of its data, and write it to ``out``.

    The recipe is AdamW with a warm-up cosine and label smoothing. Digits are augmented by random affine maps,
    photographs by shifts and flips. The test split is evaluated once, after the last step, and selects nothing. The
    file is written completely or not at all. The same seed on the same machine gives the same file.

    Args:
        name: a model of the zoo.
        out: the safetensors file to write (float32).
        data: a folder with parquet files of both splits, as Hugging Face publishes CIFAR-10; digits need no folder.
        epochs: passes over the training split; the zoo's number for this model if ``None``.
        seed: seed of the initial weights, the order and the augmentation. The state of the global generators is
            restored.
        progress: called with (finished epochs, all epochs).

    Returns:
        The top-1 accuracy on the test split, or the AP of masks of a detector, in 0 … 1.

    Raises:
        InputError: the zoo has no such model; ``data`` is missing, superfluous or without such images; or the folder
            of ``out`` does not exist.
        QplugError: ``out`` cannot be written.
    """
    import torch

    if name not in ZOO:
        raise InputError(f"the zoo has no model '{name}'", fix=f"there are: {', '.join(ZOO)}")
    out = Path(out).expanduser()
    if not out.parent.is_dir():
        raise InputError("the folder of the checkpoint does not exist", where=str(out.parent), fix="create it first")
    entry = ZOO[name]
    epochs = epochs or entry.epochs
    if entry.data == "shapes":
        return _detector(name, out, data, epochs, seed, progress)
    images, labels = tensors(entry, "train", data)
    test = tensors(entry, "test", data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = entry.build()
        train_in_place(model, images, labels, epochs, progress, AUGMENT[entry.data])
    accuracy = top1(model, *test)
    training = {
        "model": name,
        "seed": seed,
        "epochs": epochs,
        "test_top1": round(accuracy, 4),
        "torch": torch.__version__,
    }
    _write(model.state_dict(), out, training)
    return accuracy


def _detector(
    name: str,
    out: Path,
    data: Path | None,
    epochs: int,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> float:
    """``train`` for the detector of scenes; returns the AP of its masks on the test split."""
    import torch

    from qplug.data.loading import batches
    from qplug.data.shapes import SIDE, Shapes
    from qplug.models.detector_interface import settle_detector
    from qplug.models.interface import settle_interface
    from qplug.training.supervised.zoo_detector import train_detector

    if data is not None:
        what = f"{name} is trained on embedded data: no folder is read"
        raise InputError(what, where="--data", fix="leave it out")
    scenes = {split: Shapes(Shapes.Config(source="shapes_detection", split=split)).open(0) for split in SPLITS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ZOO[name].build()
        train_detector(model, scenes["train"], epochs, progress)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    preparation, task = settle_detector(model, (SIDE, SIDE))
    settle_interface(model, preparation.example(), task, name)
    outputs, labels = [], []
    with torch.inference_mode():
        for inputs, found in batches(scenes["test"], preparation.transform(), 20, collect=task.collect):
            outputs.append(model(inputs))
            labels.append(found)
    precision = task.judge(torch.cat(outputs), task.join(labels))
    training = {
        "model": name,
        "seed": seed,
        "epochs": epochs,
        "test_ap": round(precision, 4),
        "torch": torch.__version__,
    }
    _write(state, out, training)
    return precision


def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of ``images`` (N, C, H, W) whose largest logit is the logit of the label (N,), in 0 … 1."""
    import torch

    model.eval()
    with torch.inference_mode():
        predictions = torch.cat([model(part).argmax(1) for part in torch.split(images, 1024)])
    return float((predictions == labels).float().mean())


def tensors(entry: Entry, split: Literal["train", "test"], data: Path | None = None) -> tuple[Tensor, Tensor]:
    """(images (N, C, H, W) float32, prepared for ``entry``'s model; labels (N,) int64) of one split.

    Raises:
        InputError: ``data`` is missing, superfluous, or without such images.
    """
    import torch

    from qplug.data.loading import batches

    if entry.embedded != (data is None):
        raise InputError(
            f"{entry.build.__name__} is trained on embedded data: no folder is read"
            if entry.embedded
            else f"{entry.build.__name__} is trained on {entry.data}, which is not embedded",
            where="--data",
            fix="leave it out" if entry.embedded else "name a folder with parquet files of its splits train and test",
        )
    pairs = list(batches(_examples(split, data), entry.preprocessing.transform(), 1024))
    return torch.cat([images for images, _ in pairs]), torch.cat([labels for _, labels in pairs])


def _examples(split: Literal["train", "test"], data: Path | None) -> Examples:
    if data is None:
        from qplug.data.digits import Digits

        return Digits(Digits.Config(source="digits", split=split)).open(0)
    from qplug.data.hf import HuggingFace

    return HuggingFace(HuggingFace.Config(source="hf", path=str(data), split=split)).open(0)


def train_in_place(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    progress: Callable[[int, int], None] | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Train ``model`` in place on images (N, C, H, W) and labels (N,), with the recipe of ``train``.

    ``augment`` is ``affine`` by default. The model remains in training mode.
    """
    import torch
    from torch.nn import functional as F

    from qplug.training.supervised.optimize import rate_factor

    augment = augment or affine
    steps = epochs * math.ceil(len(images) / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step / steps, WARMUP))
    model.train()
    for epoch in range(epochs):
        for index in torch.split(torch.randperm(len(images)), BATCH):
            loss = F.cross_entropy(model(augment(images[index])), labels[index], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        if progress is not None:
            progress(epoch + 1, epochs)


def affine(images: Tensor) -> Tensor:
    """A random rotation (±15°), scale (0.85 … 1.15 on each axis), shear (±0.15) and shift (±1/8 of the image).

    ``images``: (N, C, H, W), normalized. Pixels from outside the image repeat the border.
    """
    import torch
    from torch.nn import functional as F

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(len(images)).uniform_(low, high)

    angle, shear = uniform(-math.pi / 12, math.pi / 12), uniform(-0.15, 0.15)
    width, height = uniform(0.85, 1.15), uniform(0.85, 1.15)
    cos, sin = angle.cos(), angle.sin()
    rows = [cos * width, (shear - sin) * height, uniform(-0.25, 0.25), sin * width, cos * height, uniform(-0.25, 0.25)]
    theta = torch.stack(rows, dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def shift_and_flip(images: Tensor) -> Tensor:
    """A random shift by up to 4 pixels on each axis, and a flip from left to right with probability ½.

    ``images``: (N, C, H, W), normalized. Pixels from outside the image mirror the border.
    """
    import torch
    from torch.nn import functional as F

    count, _, height, width = images.shape
    padded = F.pad(images, (4, 4, 4, 4), mode="reflect")
    top, left = torch.randint(9, (2, count, 1, 1))
    rows, columns = top + torch.arange(height).view(1, -1, 1), left + torch.arange(width).view(1, 1, -1)
    shifted = padded[torch.arange(count).view(-1, 1, 1), :, rows, columns].permute(0, 3, 1, 2)
    flipped = torch.rand(count, 1, 1, 1) < 0.5
    return torch.where(flipped, shifted.flip(-1), shifted)


AUGMENT: dict[str, Callable[[Tensor], Tensor]] = {"digits": affine, "cifar10": shift_and_flip}
"""Data set → augmentation of its training images."""


def _write(state: dict[str, Tensor], out: Path, training: dict[str, object]) -> None:
    from safetensors.torch import save

    tensors = {key: value.contiguous() for key, value in state.items()}
    write_file(out, save(tensors, metadata={"training": json.dumps(training)}))
