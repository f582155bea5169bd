"""Tokenization of texts to a model's input. Importing this module does not import torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from qplug.core.errors import InputError
from qplug.core.examples import Answers, Label

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qplug.data.text import TextItem

TextTask = Literal["sequence_classification", "question_answering"]


@dataclass(frozen=True)
class Tokenization:
    """Conversion of a text, or a text and its pair, to (3, L) int64: token ids, attention mask, token types.

    Longer inputs are cut at the end: of two texts, the longer one is cut; of a question and its context, the context.
    Shorter ones are padded at the end; the mask of padding is 0.

    Attributes:
        tokenizer: content of ``tokenizer.json``, for the ``tokenizers`` library.
        max_length: L, special tokens included.
        task: the task of the labels.
        pad: the padding token, in the tokenizer's vocabulary.
        digest: SHA-256 of ``tokenizer``, which replaces it in ``repr``.
    """

    tokenizer: str = field(repr=False)
    max_length: int
    task: TextTask
    pad: str
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", hashlib.sha256(self.tokenizer.encode()).hexdigest())

    def transform(self) -> TokenTransform:
        """A function from a ``TextItem`` to (3, L) int64, which also converts labels."""
        return TokenTransform(self)

    def example(self) -> Tensor:
        """(1, 3, L) int64: random tokens, a quarter of them padding, the second half of the second type."""
        import torch

        vocabulary = _tokenizer(self).get_vocab_size()
        length, generator = self.max_length, torch.Generator().manual_seed(0)
        positions = torch.arange(length)
        mask = positions < max(1, length - length // 4)
        tokens = torch.randint(vocabulary, (length,), generator=generator)
        return torch.stack([tokens, mask, positions >= length // 2]).long().unsqueeze(0)


class TokenTransform:
    """``qplug.core.examples.LabelTransform`` of a ``Tokenization``.

    A class label does not change. The characters of an answer, (index of the first, index after the last) in the
    context, are converted to its first and last token. No answer, (0, 0), becomes (0, 0): models for SQuAD 2.0 predict
    the first token for it. An answer that does not fit within L tokens becomes (−1, −1), which no output can match.
    ``Answers`` become ``TokenAnswers``, with these tokens and what decodes others.
    """

    def __init__(self, tokenization: Tokenization) -> None:
        self._tokenization, self._tokenizer = tokenization, _tokenizer(tokenization)
        self._cut: set[TextItem] = set()
        self._dropped: set[TextItem] = set()
        self._last: tuple[TextItem | None, Any] = (None, None)

    def __call__(self, item: TextItem) -> torch.Tensor:
        """(3, L) int64; raises ``InputError`` if a question alone is too long."""
        import torch

        encoding = self._encode(item)
        return torch.tensor([encoding.ids, encoding.attention_mask, encoding.type_ids], dtype=torch.int64)

    def label(self, item: TextItem, label: Label) -> Label:
        """The class, or the answer's first and last token."""
        answers = self._tokenization.task == "question_answering"
        if answers is not isinstance(label, (tuple, Answers)):
            raise InputError(
                f"the model is for {self._tokenization.task}, and the labels are {'classes' if answers else 'answers'}",
                where="data",
                fix="set answer_column and pair_column" if answers else "set label_column",
            )
        if isinstance(label, tuple):
            return self._tokens(item, *label)
        if not isinstance(label, Answers):
            return label
        from qplug.core.task.answers import TokenAnswers

        start, last = self._tokens(item, label.first, label.end)
        encoding = self._encode(item)
        pairs = zip(encoding.offsets, encoding.sequence_ids, strict=True)
        offsets = tuple(place if part == 1 else None for place, part in pairs)
        return TokenAnswers(start, last, label.texts, item.pair or "", offsets)

    def _tokens(self, item: TextItem, first: int, end: int) -> tuple[int, int]:
        """The first and last token of characters in the context."""
        if first == end:
            return (0, 0)
        encoding = self._encode(item)
        start, last = encoding.char_to_token(first, 1), encoding.char_to_token(end - 1, 1)
        if start is None or last is None:
            self._dropped.add(item)
            return (-1, -1)
        return start, last

    def losses(self) -> list[str]:
        """The number of cut texts, and the number of answers that the inputs do not contain."""
        length, notes = self._tokenization.max_length, []
        if self._cut:
            notes.append(f"{len(self._cut)} texts were cut to max_length, {length} tokens")
        if self._dropped:
            notes.append(f"{len(self._dropped)} answers are not within the first {length} tokens, and count as wrong")
        return notes

    def _encode(self, item: TextItem) -> Any:
        if self._last[0] is item:  # label() is called after the transform of the same item
            return self._last[1]
        try:
            encoding = self._tokenizer.encode(item.text, item.pair)
        except Exception as error:  # the library raises plain Exception
            raise InputError(
                f"the text cannot be cut to {self._tokenization.max_length} tokens: {error}",
                where=item.text[:60],
                fix="raise model.max_length",
            ) from error
        if encoding.overflowing:
            self._cut.add(item)
        self._last = (item, encoding)
        return encoding


def _tokenizer(tokenization: Tokenization) -> Any:
    from tokenizers import Tokenizer

    length, pad = tokenization.max_length, tokenization.pad
    tokenizer = Tokenizer.from_str(tokenization.tokenizer)
    strategy = "only_second" if tokenization.task == "question_answering" else "longest_first"
    tokenizer.enable_truncation(length, strategy=strategy)
    tokenizer.enable_padding(length=length, pad_token=pad, pad_id=tokenizer.token_to_id(pad))
    return tokenizer
