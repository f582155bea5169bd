"""Answers to questions as texts: their decoding from token scores, and the scores of SQuAD."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qplug.core.examples import Annotation

LONGEST = 30
"""Tokens of an answer, at most, as in the published scripts for BERT."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class TokenAnswers(Annotation):
    """The accepted answers to a question, with what turns a pair of tokens into a text.

    Attributes:
        start, end: first and last token of the first answer; negative if the input does not contain it.
        texts: the accepted answers; empty if the question has none.
        context: the text that holds the answers.
        offsets: for each token of the input, its characters in the context; ``None`` outside the context.
    """

    start: int
    end: int
    texts: tuple[str, ...]
    context: str
    offsets: tuple[tuple[int, int] | None, ...]

    def content(self) -> Any:
        """Everything."""
        return [self.start, self.end, self.texts, self.context, self.offsets]


def decode(scores: Tensor, answers: TokenAnswers, may_be_empty: bool) -> str:
    """The text of the span with the largest sum of scores, of at most ``LONGEST`` tokens within the context.

    Args:
        scores: (2, L) float32, the scores of the tokens as start and as end.
        answers: of the question.
        may_be_empty: whether the data has questions without an answer (SQuAD 2.0): the answer is then empty if the
            first token, which stands for none, has a larger sum.
    """
    places = [index for index, offset in enumerate(answers.offsets) if offset is not None]
    if not places:
        return ""
    first, last = scores[:, places]
    sums = first[:, None] + last[None, :]
    allowed = torch.ones_like(sums, dtype=torch.bool).triu().tril(LONGEST - 1)
    best = int(sums.masked_fill(~allowed, -torch.inf).argmax())
    start, end = divmod(best, len(places))
    if may_be_empty and float(scores[:, 0].sum()) > float(sums[start, end]):
        return ""
    begin, finish = answers.offsets[places[start]], answers.offsets[places[end]]
    assert begin is not None
    assert finish is not None
    return answers.context[begin[0] : finish[1]]


def normalized(text: str) -> str:
    """Lower case, without punctuation, articles and repeated spaces, as SQuAD's official script has it."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, truth: str) -> float:
    """1 if the normalized texts are equal, else 0."""
    return float(normalized(prediction) == normalized(truth))


def f1(prediction: str, truth: str) -> float:
    """The harmonic mean of precision and recall of the words that both normalized texts have."""
    ours, theirs = normalized(prediction).split(), normalized(truth).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs))


def best(score: Callable[[str, str], float], prediction: str, texts: Sequence[str]) -> float:
    """The largest score over the accepted answers; without any, that of the empty text."""
    return max(score(prediction, text) for text in texts or ("",))
