"""Protocols of examples with labels in a fixed order, and of transforms that also convert the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

Label = int | tuple[int, int]
"""A class, or the characters of an answer in its context: (index of the first, index after the last)."""


class Examples(Protocol):
    """Labelled images, or texts (``qplug.data.text.TextItem``), in a fixed order; each is decoded when indexed."""

    def __len__(self) -> int:
        """Number of examples, at least 1."""

    def __getitem__(self, index: int) -> tuple[Any, Label]:
        """The decoded image or the text, with its label; raises ``InputError`` if it cannot be decoded."""

    def label(self, index: int) -> Label:
        """The label, without decoding the example; raises ``InputError`` if it has none."""

    def key(self, index: int) -> str:
        """A readable name of the example, unique in the data set: its path, or the data set's name with an index."""

    def size_hint(self, index: int) -> int:
        """Size of the content in bytes, found without reading it if possible. Equal contents have equal sizes."""

    def digest(self, index: int) -> str:
        """SHA-256 of the content's bytes, as 64 hexadecimal digits."""


@runtime_checkable
class LabelTransform(Protocol):
    """A transform that also converts labels, for example the characters of an answer to token positions."""

    def __call__(self, item: Any) -> torch.Tensor:
        """The model's input."""

    def label(self, item: Any, label: Label) -> Label:
        """The label that corresponds to the model's output for ``item``; negative if no output can be correct."""

    def losses(self) -> list[str]:
        """The parts of the items so far that the inputs do not contain, such as cut texts, one sentence each."""
