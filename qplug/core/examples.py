"""Protocols of examples with labels in a fixed order, and of transforms that also convert the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch


class Annotation:
    """A label that is more than a number, such as boxes, a map of classes, or texts: the base of frozen dataclasses.

    A task that takes such labels collects them in ``Task.collect``.
    """

    def content(self) -> Any:
        """JSON values that are equal exactly for equal labels; keys of caches and of runs hold their digest."""
        raise TypeError(f"{type(self).__name__} does not implement content()")


@dataclass(frozen=True)
class Answers(Annotation):
    """The accepted answers to a question.

    Attributes:
        first, end: characters of the first answer in the context: its first one, and the one after its last; both 0 if
            the question has no answer.
        texts: every accepted answer.
    """

    first: int
    end: int
    texts: tuple[str, ...]

    def content(self) -> Any:
        """Everything."""
        return [self.first, self.end, *self.texts]


Label = int | tuple[int, int] | Annotation
"""A class, the characters of an answer in its context (index of the first, index after the last), or more."""

Labels = Any
"""The labels of several examples, as ``Task.collect`` returns them: a tensor (N, …), or a list of N objects."""


@dataclass(frozen=True)
class Classes:
    """The classes that a data set has, whether or not an example of each was drawn.

    Attributes:
        labels: class → label.
        by: what gives an example its label, such as ``folder name``.
        complete: whether these must be all classes of a model, so that it has one output for each.
        option: the option of the data source that gives the labels; empty if it has none.
        folder: the folder that holds the class folders, if there is one.
        inner: folders within it that hold class folders too, with their number: one of them may have been meant.
        notes: what a reader of accuracies must know of the labels, one sentence each.
    """

    labels: Mapping[str, int]
    by: str
    complete: bool = True
    option: str = ""
    folder: Path | None = None
    inner: Mapping[Path, int] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        """``5 classes, ant … emu``."""
        names = list(self.labels)
        return f"1 class, {names[0]}" if len(names) == 1 else f"{len(names):,} classes, {names[0]} … {names[-1]}"


class Examples(Protocol):
    """Images, or texts (``qplug.data.text.TextItem``), in a fixed order; each is decoded when indexed.

    Calibration reads no labels, so its examples need none. A data set may also have ``classes`` (``Classes``, or
    ``None``), which are compared with the model's outputs, and ``notes``: sentences that become warnings of a run, such
    as how many files were left out.
    """

    def __len__(self) -> int:
        """Number of examples, at least 1."""

    def __getitem__(self, index: int) -> tuple[Any, Label | None]:
        """The decoded image or the text, with its label, ``None`` if it has none.

        Raises ``InputError`` if it cannot be decoded.
        """

    def label(self, index: int) -> Label:
        """The label, without decoding the example; raises ``InputError`` if it has none."""

    def key(self, index: int) -> str:
        """A readable name of the example, unique in the data set: its path, or the data set's name with an index."""

    def size_hint(self, index: int) -> int:
        """Size of the content in bytes, found without reading it if possible. Equal contents have equal sizes."""

    def digest(self, index: int) -> str:
        """SHA-256 of the content's bytes, as 64 hexadecimal digits."""


def classes_of(examples: Examples) -> Classes | None:
    """The classes of a data set; ``None`` if it does not tell them."""
    found = getattr(examples, "classes", None)
    return found if isinstance(found, Classes) else None


def notes_of(examples: Examples) -> list[str]:
    """What a data set says of its examples, one sentence each."""
    return [str(note) for note in getattr(examples, "notes", ())]


def describe_labels(examples: Examples, labels: Labels) -> str:
    """What the labels are, such as ``5 classes, ant … emu; labels by folder name``."""
    classes = classes_of(examples)
    if classes is not None:
        return f"{classes}; labels by {classes.by}"
    if isinstance(labels, Sequence):
        return ", ".join(dict.fromkeys(type(label).__name__.lower() for label in labels))
    return f"labels {int(labels.min())} … {int(labels.max())}" if labels.dim() == 1 else "answers"


@runtime_checkable
class LabelTransform(Protocol):
    """A transform that also converts labels, for example the characters of an answer to token positions."""

    def __call__(self, item: Any) -> torch.Tensor:
        """The model's input."""

    def label(self, item: Any, label: Label) -> Label:
        """The label that corresponds to the model's output for ``item``; negative if no output can be correct."""

    def losses(self) -> list[str]:
        """The parts of the items so far that the inputs do not contain, such as cut texts, one sentence each."""
