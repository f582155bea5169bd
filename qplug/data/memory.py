"""Examples in memory: tensors from a caller's data loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qplug.core.errors import InputError
from qplug.core.examples import Annotation, Label
from qplug.core.storage.hashing import fingerprint


class TensorExamples:
    """``Examples`` of model inputs that the caller has prepared.

    Args:
        batches: inputs (B, …), or pairs of inputs and labels (B,) int64, from a ``DataLoader``. All are held in memory.
            Labels may also be a list of B ``Annotation``.
        name: name of the data in errors.

    Raises:
        InputError: there are no examples, a batch is neither a tensor nor a pair of tensors, or its labels are not one
            integer for each input.
    """

    def __init__(self, batches: Iterable[Any], name: str) -> None:
        self._name, self._items, self._labels = name, list[Tensor](), list[Label | None]()
        for batch in batches:
            parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
            inputs, labels = parts if len(parts) == 2 else (*parts, None) if len(parts) == 1 else (None, None)
            if not isinstance(inputs, Tensor) or not (
                labels is None or isinstance(labels, Tensor) or _annotated(labels)
            ):
                what = f"expected tensors (B, …) or pairs of tensors, received {type(batch).__name__}"
                raise InputError(what, where=name, fix="yield inputs, or (inputs, labels), from the loader")
            self._items += [item.detach().cpu() for item in inputs]
            self._labels += [None] * len(inputs) if labels is None else _labels(labels, len(inputs), name)
        if not self._items:
            raise InputError("there are no examples", where=name, fix="give a loader that yields at least one batch")

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Tensor, Label | None]:
        return self._items[index], self._labels[index]

    def label(self, index: int) -> Label:
        """The label; raises ``InputError`` if the loader yielded none."""
        label = self._labels[index]
        if label is None:
            raise InputError("the example has no label", where=self.key(index), fix="yield (inputs, labels)")
        return label

    def key(self, index: int) -> str:
        """The name of the data with the index."""
        return f"{self._name}/{index}"

    def size_hint(self, index: int) -> int:
        """Size of the tensor in bytes."""
        return int(self._items[index].nbytes)

    def digest(self, index: int) -> str:
        """SHA-256 of the tensor."""
        return fingerprint({"input": self._items[index]})


def _annotated(labels: object) -> bool:
    return isinstance(labels, (list, tuple)) and all(isinstance(label, Annotation) for label in labels)


def _labels(labels: Any, count: int, name: str) -> list[Label]:
    """The labels (B,) of a batch, the pairs (B, 2) of answers, or B annotations."""
    if not isinstance(labels, Tensor):
        if len(labels) != count:
            what = f"expected {count} labels for {count} inputs, received {len(labels)}"
            raise InputError(what, where=name, fix="yield (inputs, labels) with one label for each input")
        return list(labels)
    whole = not labels.is_floating_point() and not labels.is_complex() and labels.dtype != torch.bool
    if not whole or labels.dim() not in (1, 2) or len(labels) != count or labels.shape[1:] not in ((), (2,)):
        raise InputError(
            f"expected {count} integer labels for {count} inputs, received {tuple(labels.shape)} {labels.dtype}",
            where=name,
            fix="yield (inputs, labels) with the index of the class of each input, such as one_hot.argmax(1)",
        )
    return [label if isinstance(label, int) else (label[0], label[1]) for label in labels.tolist()]


@dataclass(frozen=True)
class AsItIs:
    """The identity as a ``Preparation``, for examples that are model inputs.

    Attributes:
        shape: shape of an input, without the batch axis.
        dtype: dtype of an input.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, examples: TensorExamples) -> AsItIs:
        """The preparation with the shape and dtype of the first example."""
        first, _ = examples[0]
        return cls(tuple(first.shape), first.dtype)

    def transform(self) -> Callable[[Tensor], Tensor]:
        """The identity."""
        return lambda item: item

    def example(self) -> Tensor:
        """(1, …): Gaussian noise for float inputs, zeros for integer inputs."""
        if not self.dtype.is_floating_point:
            return torch.zeros((1, *self.shape), dtype=self.dtype)
        return torch.randn((1, *self.shape), generator=torch.Generator().manual_seed(0)).to(self.dtype)
