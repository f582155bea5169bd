"""Drawing and batching of examples. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from qplug.core.errors import InputError
from qplug.core.examples import Examples, Label, Labels, LabelTransform
from qplug.core.text import listed

if TYPE_CHECKING:
    import torch


IMAGES = "number of images, drawn with the recipe's seed (for evaluation, with a fixed seed); all if unset"
"""Description of the option ``images`` of the data sources."""


def choose(available: int, images: int | None, seed: int, where: str, noun: str = "images") -> Sequence[int]:
    """Indices of ``images`` out of ``available``, drawn by ``seed`` without replacement; all in order if ``None``.

    The draw is a prefix of one permutation, so that the 64 images of a seed contain the 32 images of the same seed.
    Raises ``InputError`` if there are no images, or fewer than ``images``.
    """
    if available == 0:
        raise InputError(f"there are no {noun}", where=where, fix="set the recipe's data to a source with examples")
    if images is None:
        return range(available)
    if not 1 <= images <= available:
        raise InputError(
            f"expected 1 … {available} {noun}, received {images}",
            where=where,
            fix=f"set {noun} to at most {available}",
        )
    import numpy as np

    return [int(index) for index in np.random.default_rng(seed).permutation(available)[:images]]


def prepared(
    images: Examples, transform: Callable[[Any], torch.Tensor], batch_size: int, device: str | torch.device = "cpu"
) -> Iterator[torch.Tensor]:
    """The inputs of ``batches``, without reading a label."""
    for _, pairs in _decoded(images, batch_size):
        yield _stacked(transform, [item for item, _ in pairs], device)


def batches(
    images: Examples,
    transform: Callable[[Any], torch.Tensor],
    batch_size: int,
    device: str | torch.device = "cpu",
    collect: Callable[[Sequence[Label]], Labels] | None = None,
    missing: Label | None = None,
) -> Iterator[tuple[torch.Tensor, Labels]]:
    """Iterate over a data set in order, with one batch in memory at a time; the last batch may be smaller.

    Args:
        images: the data set.
        transform: item to the model's input, as ``Preparation.transform`` returns: PIL image to (C, H, W) float32, or
            text to (3, L) int64. A ``LabelTransform`` also converts the labels.
        batch_size: examples in a batch, at least 1.
        device: device of the batches.
        collect: ``Task.collect`` of the model's task; by default labels are integers, or pairs of them.
        missing: the label of an example that has none; ``None`` if each needs one.

    Yields:
        Inputs (B, …) and labels: (B,) int64, or (B, 2) for the first and last tokens of answers, or what ``collect``
        returns. Labels that are no tensor stay on the CPU.

    Raises:
        InputError: an example cannot be decoded, or has no label.
    """
    import torch

    convert = transform.label if isinstance(transform, LabelTransform) else lambda _, label: label
    for start, pairs in _decoded(images, batch_size):
        inputs = _stacked(transform, [item for item, _ in pairs], device)
        found: list[Label] = []
        for index, (item, label) in enumerate(pairs, start=start):
            if label is not None:
                found.append(convert(item, label))
            elif missing is not None:
                found.append(missing)
            else:
                raise InputError("the example has no label", where=images.key(index), fix="use labelled data")
        labels = torch.tensor(found, dtype=torch.int64) if collect is None else collect(found)
        yield inputs, labels.to(device) if isinstance(labels, torch.Tensor) else labels


def _decoded(images: Examples, batch_size: int) -> Iterator[tuple[int, list[tuple[Any, Label | None]]]]:
    """The index of the first example of each batch, and the examples."""
    # Not a DataLoader: even without workers it draws from torch's global generator, which changes later draws.
    for start in range(0, len(images), batch_size):
        yield start, [images[index] for index in range(start, min(start + batch_size, len(images)))]


def _stacked(
    transform: Callable[[Any], torch.Tensor], items: Sequence[Any], device: str | torch.device
) -> torch.Tensor:
    import torch

    return torch.stack([transform(item) for item in items]).to(device)


def check_disjoint(calibration: Examples, evaluation: Examples, name: str = "calibration") -> None:
    """Raise ``InputError`` if two data sets share an example. Contents are compared, so renamed copies are found.

    Only examples of equal size in bytes are hashed. ``name`` is the name of the first data set in the error.
    """
    sizes = [[images.size_hint(index) for index in range(len(images))] for images in (calibration, evaluation)]
    both = set(sizes[0]) & set(sizes[1])
    digests = {calibration.digest(index): index for index, size in enumerate(sizes[0]) if size in both}  # in file order
    shared: list[str] = []
    for index, size in enumerate(sizes[1]):
        copy = digests.get(evaluation.digest(index)) if size in both else None
        if copy is not None:
            shared.append(" = ".join(dict.fromkeys([calibration.key(copy), evaluation.key(index)])))
    if shared:
        raise InputError(
            f"{name} and evaluation share {len(shared)} example{'s' if len(shared) > 1 else ''}: {listed(shared, 5)}",
            fix=f"set another split or folder for {name}: evaluation data must be held out",
        )
