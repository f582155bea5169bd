"""Examples in memory: tensors from a caller's data loader."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qplug.core.errors import InputError, QplugError
from qplug.core.examples import Annotation, Label
from qplug.core.storage.hashing import fingerprint
from qplug.core.text import listed

LABELS = ("labels", "label", "targets", "target", "next_sentence_label")
"""Keys of a batch that hold labels and are no inputs of the model."""
NO_LABEL = -1
"""Label of an example whose labels are not read."""
LOADER = "give a DataLoader, or a list of batches: tensors (B, …), (inputs, labels), or dicts of the model's keywords"


@dataclass(frozen=True)
class Keywords:
    """The names by which a model may take inputs: the parameters of its forward.

    Attributes:
        names: of the parameters; empty if they are not known.
        open: whether the forward takes any keyword (``**kwargs``).
    """

    names: tuple[str, ...] = ()
    open: bool = False

    @classmethod
    def of(cls, forward: Callable[..., Any]) -> Keywords:
        """Those of a model's forward."""
        try:
            parameters = inspect.signature(forward).parameters.values()
        except (TypeError, ValueError):  # a compiled forward has no signature
            return cls(open=True)
        names = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        return cls(names, any(p.kind is p.VAR_KEYWORD for p in parameters))

    def inputs(self, batch: Mapping[str, Any]) -> list[str]:
        """The keys of a batch that are inputs."""
        known = [key for key in batch if key not in LABELS and batch[key] is not None]
        named = [key for key in known if key in self.names]
        return named or (known if self.open else [])


class TensorExamples:
    """``Examples`` of model inputs that the caller has prepared. All are held in memory.

    Args:
        batches: inputs (B, …), pairs of inputs and labels (B,) int64, or dicts of a model's keywords, as a
            ``DataLoader`` yields them. Labels may also be a list of B ``Annotation``.
        name: name of the data in errors.
        keywords: what a dict's keys may be; several inputs (B, …) of one shape are stacked to (B, inputs, …).
        labelled: whether labels are read. If not, whatever follows the inputs in a batch is passed over.
        limit: number of examples to take; all if ``None``.
        annotated: whether labels are kept, for a subclass that reads none.

    Attributes:
        names: the keys of a dict that are inputs; empty where batches hold the input itself.
        notes: what was left out, one sentence each.

    Raises:
        InputError: there are no examples, the loader raises, a batch is none of these, its inputs have other shapes
            than those before, or its labels are not one integer for each input.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        name: str,
        *,
        keywords: Keywords | None = None,
        labelled: bool = True,
        limit: int | None = None,
        annotated: bool = True,
    ) -> None:
        self._name, self._items, self._labels = name, list[Tensor](), list[Label | None]()
        self._keywords = keywords or Keywords()
        self.names: tuple[str, ...] = ()
        self.notes: list[str] = []
        for index, batch in enumerate(_batches(batches, name)):
            if limit is not None and len(self._items) >= limit:
                self.notes.append(f"{name}: the first {limit} examples of the loader were taken, and it has more")
                break
            inputs, labels = self._split(batch, index)
            if labels is not None and not labelled:
                labels = None
            self._check(inputs, index)
            self._items += [item.detach().cpu() for item in inputs]
            self._labels += [None] * len(inputs) if labels is None else _labels(labels, len(inputs), name)
        if not self._items:
            fix = "give a loader that yields at least one batch; a generator can be read only once"
            raise InputError("there are no examples", where=name, fix=fix)
        if limit is not None and len(self._items) > limit:
            self.notes.append(f"{name}: the first {limit} examples of the loader were taken, and it has more")
            del self._items[limit:], self._labels[limit:]
        if not labelled or not annotated:
            self._labels = [NO_LABEL] * len(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Tensor, Label | None]:
        return self._items[index], self._labels[index]

    def part(self, which: slice) -> TensorExamples:
        """Some of the examples."""
        part = copy.copy(self)
        part._items, part._labels = self._items[which], self._labels[which]
        return part

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

    def _split(self, batch: Any, index: int) -> tuple[Any, Any]:
        """Inputs (B, …) of a batch, and its labels or ``None``."""
        if isinstance(batch, Mapping):
            labels = next((batch[key] for key in LABELS if batch.get(key) is not None), None)
            return self._named(batch, index), labels
        parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
        if parts and isinstance(parts[0], Mapping):
            return self._named(parts[0], index), parts[1] if len(parts) > 1 else None
        if not parts or not isinstance(parts[0], Tensor) or (self.names and index):
            what = f"expected tensors (B, …) or pairs of tensors, received {_kind(batch)}"
            raise InputError(what, where=f"{self._name}, batch {index}", fix=LOADER)
        return parts[0], parts[1] if len(parts) > 1 else None

    def _named(self, batch: Mapping[str, Any], index: int) -> Tensor:
        """The inputs of a dict, stacked along a second axis if there are several."""
        where = f"{self._name}, batch {index}"
        names = tuple(self._keywords.inputs(batch))
        if not names:
            takes = listed(self._keywords.names, 4) or "no keyword"
            what = f"the batch has the keys {listed(map(str, batch), 6)}, and the model's forward takes {takes}"
            raise InputError(what, where=where, fix=f"expected tensors under the forward's names, or {LOADER}")
        if index and names != self.names:
            what = (
                f"the batch has the inputs {listed(names, 6)}, and the first has {listed(self.names, 6) or 'no names'}"
            )
            raise InputError(what, where=where, fix="let every batch have the same keys")
        self.names, tensors = names, [batch[name] for name in names]
        if wrong := [name for name, value in zip(names, tensors, strict=True) if not isinstance(value, Tensor)]:
            what = f"expected tensors, received {_kind(batch[wrong[0]])} for '{wrong[0]}'"
            raise InputError(what, where=where, fix='let the loader return tensors, such as with return_tensors="pt"')
        if len(tensors) == 1:
            return tensors[0]  # type: ignore[no-any-return]  # checked above
        if len({(tensor.shape, tensor.dtype) for tensor in tensors}) > 1:
            each = listed((f"{name} {_shape(value)}" for name, value in zip(names, tensors, strict=True)), 6)
            raise InputError(
                f"the model's inputs have different shapes or types: {each}; a model with several inputs is quantized "
                "only if they have one shape and type, as input_ids and attention_mask have",
                where=where,
                fix="wrap the model: a module whose forward takes one of them and makes or holds the others",
            )
        return torch.stack(tensors, 1)

    def _check(self, inputs: Tensor, index: int) -> None:
        where = f"{self._name}, batch {index}"
        if inputs.dim() < 2:
            what = f"expected inputs (B, …), received a tensor {_shape(inputs)}"
            raise InputError(what, where=where, fix="yield batches: x[None] for a single input")
        first = self._items[0] if self._items else inputs[0] if len(inputs) else None
        if first is not None and (inputs.shape[1:] != first.shape or inputs.dtype != first.dtype):
            raise InputError(
                f"the batch has inputs {_shape(inputs[0])} {_dtype(inputs)}, and those before it have {_shape(first)} "
                f"{_dtype(first)}",
                where=where,
                fix="resize, crop or pad all inputs to one shape",
            )


def _batches(batches: Iterable[Any], name: str) -> Iterator[Any]:
    """The batches; what the loader raises is an ``InputError`` with the number of the batch."""
    if isinstance(batches, (Tensor, Mapping)):
        yield batches
        return
    if isinstance(batches, torch.utils.data.Dataset):
        what = "received a Dataset, which yields single examples, and expected batches"
        raise InputError(what, where=name, fix="give torch.utils.data.DataLoader(dataset, batch_size=32)")
    count = 0
    try:
        for batch in batches:
            yield batch
            count += 1
    except (QplugError, GeneratorExit):
        raise
    except Exception as error:  # the caller's own code
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if count == 0 and not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
            raise InputError(f"received {_kind(batches)}, which yields no batches", where=name, fix=LOADER) from None
        raise InputError(f"the loader raised behind {count} batches: {said}", where=name) from error


def _annotated(labels: object) -> bool:
    return isinstance(labels, (list, tuple)) and all(isinstance(label, Annotation) for label in labels)


def _labels(labels: Any, count: int, name: str) -> list[Label]:
    """The labels (B,) of a batch, the pairs (B, 2) of answers, or B annotations."""
    if not isinstance(labels, Tensor) and not _annotated(labels):
        what = f"expected tensors (B, …) or pairs of tensors, received {_kind(labels)} as labels"
        raise InputError(what, where=name, fix="yield (inputs, labels), from the loader")
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


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1] in 'aeiouAEIOU' else 'a'} {name}"


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


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
