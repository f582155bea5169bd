"""How texts become the input of a model: three rows of tokens. Importing this does not import torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from qplug.core.errors import InputError
from qplug.core.examples import Label

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qplug.data.text import TextItem

TextTask = Literal["sequence_classification", "question_answering"]


@dataclass(frozen=True)
class Tokenization:
    """From a text, or a text and its pair, to (3, L) int64: token numbers, attention mask, token types.

    Longer texts are cut at the end: of two texts the longer one, and of a question and its context the context. Shorter
    ones are padded at the end, where the mask is 0.

    Attributes:
        tokenizer: ``tokenizer.json``, all that the ``tokenizers`` library needs.
        max_length: L, special tokens included.
        task: what labels are.
        pad: the padding token, in ``tokenizer``'s vocabulary.
        digest: SHA-256 of ``tokenizer``, which stands for it in ``repr``.
    """

    tokenizer: str = field(repr=False)
    max_length: int
    task: TextTask
    pad: str
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", hashlib.sha256(self.tokenizer.encode()).hexdigest())

    def transform(self) -> TokenTransform:
        """A function from a ``TextItem`` to (3, L) int64, which places labels too."""
        return TokenTransform(self)

    def example(self) -> Tensor:
        """(1, 3, L) int64: random tokens, a quarter of them padding, the second half of the second type."""
        import torch

        words = _tokenizer(self).get_vocab_size()
        length, generator = self.max_length, torch.Generator().manual_seed(0)
        place = torch.arange(length)
        mask = place < max(1, length - length // 4)
        tokens = torch.randint(words, (length,), generator=generator)
        return torch.stack([tokens, mask, place >= length // 2]).long().unsqueeze(0)


class TokenTransform:
    """``qplug.core.examples.LabelTransform`` of a ``Tokenization``.

    A label of a classifier stays as it is. The characters of an answer, (first, the one after the last) in the context,
    become its first and last token; none, (0, 0), becomes the first token twice, as models for SQuAD 2.0 are trained;
    an answer that is not whole within L tokens becomes (−1, −1), which no output can match.
    """

    def __init__(self, how: Tokenization) -> None:
        self._how, self._tokenizer = how, _tokenizer(how)
        self._cut: set[TextItem] = set()
        self._lost: set[TextItem] = set()
        self._last: tuple[TextItem | None, Any] = (None, None)

    def __call__(self, item: TextItem) -> torch.Tensor:
        """(3, L) int64; raises ``InputError`` where a question alone is too long."""
        import torch

        encoding = self._encode(item)
        return torch.tensor([encoding.ids, encoding.attention_mask, encoding.type_ids], dtype=torch.int64)

    def label(self, item: TextItem, label: Label) -> Label:
        """The class, or the answer's first and last token."""
        answers = self._how.task == "question_answering"
        if answers is isinstance(label, int):
            raise InputError(
                f"the model is for {self._how.task}, and the labels are {'classes' if answers else 'answers'}",
                where="data",
                fix="set answer_column and pair_column" if answers else "set label_column",
            )
        if isinstance(label, int):
            return label
        first, end = label
        if first == end:
            return (0, 0)
        encoding = self._encode(item)
        start, last = encoding.char_to_token(first, 1), encoding.char_to_token(end - 1, 1)
        if start is None or last is None:
            self._lost.add(item)
            return (-1, -1)
        return start, last

    def losses(self) -> list[str]:
        """How many texts were cut, and how many answers were lost by it."""
        length, notes = self._how.max_length, []
        if self._cut:
            notes.append(f"{len(self._cut)} texts were cut to max_length, {length} tokens")
        if self._lost:
            notes.append(f"{len(self._lost)} answers are not within the first {length} tokens, and count as wrong")
        return notes

    def _encode(self, item: TextItem) -> Any:
        if self._last[0] is item:  # a label follows its text
            return self._last[1]
        try:
            encoding = self._tokenizer.encode(item.text, item.pair)
        except Exception as error:  # the library has one error for all
            raise InputError(
                f"the text cannot be cut to {self._how.max_length} tokens: {error}",
                where=item.text[:60],
                fix="raise model.max_length",
            ) from error
        if encoding.overflowing:
            self._cut.add(item)
        self._last = (item, encoding)
        return encoding


def _tokenizer(how: Tokenization) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(how.tokenizer)
    tokenizer.enable_truncation(
        how.max_length, strategy="only_second" if how.task == "question_answering" else "longest_first"
    )
    tokenizer.enable_padding(length=how.max_length, pad_token=how.pad, pad_id=tokenizer.token_to_id(how.pad))
    return tokenizer
