"""What a data source opens: examples with labels, in a fixed order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

Label = int | tuple[int, int]
"""A class, or where the answer to a question stands in its context: (first character, the one after the last)."""


class Examples(Protocol):
    """Labelled images, or texts (``qplug.data.text.TextItem``), in a fixed order; none is decoded before it is used."""

    def __len__(self) -> int:
        """Number of examples, at least 1."""

    def __getitem__(self, index: int) -> tuple[Any, Label]:
        """The image, decoded, or the text, and its label; raises ``InputError`` naming one that cannot be decoded."""

    def label(self, index: int) -> Label:
        """The label alone: nothing is decoded. Raises ``InputError`` naming an example that has none."""

    def key(self, index: int) -> str:
        """What a person calls this example: its path, or the data set's name with an index. Unique in the set."""

    def size_hint(self, index: int) -> int:
        """The content's length in bytes, found without reading the content. Equal contents have equal lengths."""

    def digest(self, index: int) -> str:
        """SHA-256 of the content's bytes, as 64 hexadecimal digits."""


@runtime_checkable
class LabelTransform(Protocol):
    """A transform of items on which it depends what their labels are: the tokens of an answer, say."""

    def __call__(self, item: Any) -> torch.Tensor:
        """The model's input."""

    def label(self, item: Any, label: Label) -> Label:
        """The label that belongs to the model's output for ``item``; negative where no output can be right."""

    def losses(self) -> list[str]:
        """What of the items seen so far did not become part of an input, one sentence each."""
