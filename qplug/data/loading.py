"""Choosing, decoding and streaming examples. Importing this does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from qplug.core.errors import InputError
from qplug.core.examples import Examples, LabelTransform

if TYPE_CHECKING:
    import torch
    from PIL import Image


def choose(available: int, images: int | None, seed: int, where: str, noun: str = "images") -> Sequence[int]:
    """Indices of ``images`` out of ``available``, drawn by ``seed`` without replacement; all in order where ``None``.

    The draw is a prefix of one permutation, so that 32 images of a seed are among the 64 images of the same seed.
    Raises ``InputError`` where there are none, or fewer than asked for.
    """
    if available == 0:
        raise InputError(f"there are no {noun}", where=where, fix="point the recipe's data at a place that has some")
    if images is None:
        return range(available)
    if not 1 <= images <= available:
        raise InputError(
            f"{noun}: {images} asked for, and there are {available}", where=where, fix=f"ask for 1 … {available}"
        )
    import numpy as np

    return [int(index) for index in np.random.default_rng(seed).permutation(available)[:images]]


def decode(source: Path | IO[bytes], where: str) -> Image.Image:
    """Decode an image completely; raises ``InputError`` naming ``where`` if it is truncated, corrupt or no image."""
    from PIL import Image

    try:
        with Image.open(source) as image:
            image.load()
            decoded = image.copy()
    except Exception as error:  # a decoder meets a broken file in any way: OSError, SyntaxError, struct.error, …
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"the image cannot be decoded: {reason}", where=where, fix="replace or remove it") from error
    if decoded.mode.startswith(("I", "F")):  # PIL would clip these to 8 bits without a word
        raise InputError(
            f"the image has more than 8 bits a channel (PIL mode {decoded.mode})", where=where, fix="convert it"
        )
    return decoded


def batches(
    images: Examples, transform: Callable[[Any], torch.Tensor], batch_size: int, device: str | torch.device = "cpu"
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Stream a set in order, one batch in memory at a time; the last batch may be smaller.

    Args:
        images: the set.
        transform: item to the model's input, as ``Preparation.transform`` returns: PIL image to (C, H, W) float32, or
            text to (3, L) int64. A ``LabelTransform`` has its say on labels too.
        batch_size: examples in a batch, at least 1.
        device: where the batches go.

    Yields:
        Inputs (B, …) and labels (B,) int64, or (B, 2) for the first and last tokens of answers.
    """
    import torch

    place = transform.label if isinstance(transform, LabelTransform) else lambda _, label: label

    # No DataLoader: even without workers it draws a seed from torch's global generator, and so changes what follows.
    for start in range(0, len(images), batch_size):
        pairs = [images[index] for index in range(start, min(start + batch_size, len(images)))]
        inputs = torch.stack([transform(item) for item, _ in pairs])
        labels = torch.tensor([place(item, label) for item, label in pairs], dtype=torch.int64)
        yield inputs.to(device), labels.to(device)


def check_disjoint(calibration: Examples, evaluation: Examples, name: str = "calibration") -> None:
    """Refuse sets that share an example, by content: a copy under another name is found too.

    ``name`` is what the first of them is called in the error.

    Only those of equal length in bytes are hashed. Raises ``InputError`` naming the first that are shared.
    """
    sizes = [[images.size_hint(index) for index in range(len(images))] for images in (calibration, evaluation)]
    both = set(sizes[0]) & set(sizes[1])
    ours = {calibration.digest(index): index for index, size in enumerate(sizes[0]) if size in both}  # in file order
    shared: list[str] = []
    count = 0
    for index, size in enumerate(sizes[1]):
        twin = ours.get(evaluation.digest(index)) if size in both else None
        if twin is None:
            continue
        count += 1
        if len(shared) < 5:
            names = [calibration.key(twin), evaluation.key(index)]
            shared.append(" = ".join(dict.fromkeys(names)))
    if count:
        listed = "\n  ".join([*shared, *([f"… and {count - len(shared)} more"] if count > len(shared) else [])])
        raise InputError(
            f"{name} and evaluation share {count} example{'s' if count > 1 else ''}:\n  {listed}",
            fix=f"give another split or folder for {name}; results on what it saw mean nothing",
        )
