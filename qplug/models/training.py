"""``qplug zoo train``: how the embedded checkpoints were made, and how anyone makes them again."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from qplug.errors import InputError
from qplug.models.zoo import ZOO, Entry

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1
WARMUP = 0.05


def train(
    name: str,
    out: Path,
    *,
    epochs: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Train an embedded model on the digits' training split and write it to ``out``.

    AdamW under a cosine with warm-up, label smoothing, and random affine maps of the images. The test split is read
    once, after the last step: nothing is chosen by it. The file appears complete or not at all. The same seed on the
    same machine gives the same file.

    Args:
        name: a model of the zoo.
        out: the safetensors file to write (float32).
        epochs: passes over the training split; the model's own number if ``None``.
        seed: of the first weights, the order and the augmentation. The global generators are left as they were.
        progress: called with (epochs done, epochs in all).

    Returns:
        The top-1 accuracy on the test split, in 0 … 1.

    Raises:
        InputError: no such model, or ``out`` cannot be written.
    """
    import torch

    if name not in ZOO:
        raise InputError(f"no embedded model is called '{name}'", fix=f"there are: {', '.join(ZOO)}")
    out = Path(out).expanduser()
    if not out.parent.is_dir():
        raise InputError("the folder to write into does not exist", where=str(out.parent), fix="make it first")
    entry = ZOO[name]
    epochs = epochs or entry.epochs
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = entry.build()
        fit(model, *tensors(entry, "train"), epochs, progress)
    accuracy = top1(model, *tensors(entry, "test"))
    training = {
        "model": name,
        "seed": seed,
        "epochs": epochs,
        "test_top1": round(accuracy, 4),
        "torch": torch.__version__,
    }
    _write(model.state_dict(), out, training)
    return accuracy


def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of ``images`` (N, C, H, W) whose largest logit is at the label (N,), in 0 … 1."""
    import torch

    model.eval()
    with torch.inference_mode():
        return float((model(images).argmax(1) == labels).float().mean())


def tensors(entry: Entry, split: str) -> tuple[Tensor, Tensor]:
    """(images (N, 1, 8, 8) float32 as ``entry``'s model takes them, labels (N,) int64) of ``train`` or ``test``."""
    import torch

    from qplug.data.digits import arrays

    pixels, labels, _ = arrays("train" if split == "train" else "test")
    images = torch.from_numpy(pixels).float().div(255).unsqueeze(1)
    mean, std = entry.preprocessing.mean[0], entry.preprocessing.std[0]
    return images.sub(mean).div(std), torch.from_numpy(labels).long()


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Train ``model`` in place on images (N, 1, 8, 8) and labels (N,), and leave it in training mode; see ``train``."""
    import torch
    from torch.nn import functional as F

    from qplug.train.optimise import rate_factor

    steps = epochs * math.ceil(len(images) / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step / steps, WARMUP))
    model.train()
    for epoch in range(epochs):
        for index in torch.split(torch.randperm(len(images)), BATCH):
            loss = F.cross_entropy(model(augment(images[index])), labels[index], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        if progress is not None:
            progress(epoch + 1, epochs)


def augment(images: Tensor) -> Tensor:
    """A random rotation (±15°), scale (0.85 … 1.15 on each axis), shear (±0.15) and shift (±1 of 8 pixels) an image.

    ``images`` (N, 1, H, W), normalised; what comes in from outside repeats the border.
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


def _write(state: dict[str, Tensor], out: Path, training: dict[str, object]) -> None:
    from safetensors.torch import save

    content = save(
        {key: value.contiguous() for key, value in state.items()}, metadata={"training": json.dumps(training)}
    )
    handle, partial = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, out)
    except OSError as error:
        raise InputError(f"the checkpoint cannot be written: {error.strerror}", where=str(out)) from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(partial)
