"""Texts as tokens: three rows, answers by their tokens, and what does not fit is said."""

from __future__ import annotations

import pytest
import torch

from qplug.core.errors import InputError
from qplug.data.text import TextItem

pytest.importorskip("tokenizers")

from text_toys import WORDS, word_pieces

from qplug.models.tokens import Tokenization

QUESTION = TextItem("delta", "alpha beta gamma delta epsilon")


def how(length: int = 12, task: str = "question_answering") -> Tokenization:
    return Tokenization(word_pieces(WORDS * 3, 120).to_str(), length, task, "[PAD]")


def test_rows_are_tokens_mask_and_types() -> None:
    tokens = how().transform()(QUESTION)
    assert tokens.dtype == torch.int64
    assert tuple(tokens.shape) == (3, 12)
    assert tokens[0, [0, 2, 8]].tolist() == [2, 3, 3]  # [CLS] delta [SEP] five words [SEP]
    assert tokens[1].tolist() == [1] * 9 + [0] * 3
    assert tokens[2].tolist() == [0] * 3 + [1] * 6 + [0] * 3
    assert torch.equal(
        how(12, "sequence_classification").transform()(TextItem("alpha"))[1][:4], torch.tensor([1, 1, 1, 0])
    )


def test_an_answers_characters_become_tokens() -> None:
    transform = how().transform()
    tokens = transform(QUESTION)
    first, last = transform.label(QUESTION, (17, 30))
    assert (first, last) == (6, 7)
    assert tokens[0, first] == tokens[0, 1]  # delta, as in the question
    assert transform.label(QUESTION, (0, 0)) == (0, 0)
    assert transform.losses() == []


def test_what_is_cut_off_is_counted_and_no_answer() -> None:
    transform = how(8).transform()
    assert transform.label(QUESTION, (0, 5)) == (3, 3)
    assert transform.label(QUESTION, (17, 22)) == (6, 6)
    assert transform.label(QUESTION, (17, 30)) == (-1, -1)
    assert transform.label(TextItem("delta", QUESTION.pair + " mu"), (23, 30)) == (-1, -1)
    transform.label(QUESTION, (17, 30))
    assert transform.losses() == [
        "2 texts were cut to max_length, 8 tokens",
        "2 answers are not within the first 8 tokens, and count as wrong",
    ]
    assert how().transform().losses() == []


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be cut to 8 tokens"):
        how(8).transform()(TextItem(" ".join(WORDS), "alpha"))
    with pytest.raises(InputError, match="for question_answering, and the labels are classes"):
        how().transform().label(QUESTION, 1)
    with pytest.raises(InputError, match="for sequence_classification, and the labels are answers"):
        how(task="sequence_classification").transform().label(QUESTION, (0, 5))


def test_repr_tells_all_and_repeats() -> None:
    text = repr(how())
    assert text == repr(how())
    assert text.startswith("Tokenization(max_length=12, task='question_answering', pad='[PAD]', digest='")
    other = Tokenization(word_pieces([*WORDS, "nu"] * 3, 120).to_str(), 12, "question_answering", "[PAD]")
    assert repr(other) != text
    assert repr(how(13)) != text


def test_the_example_has_padding_and_two_types() -> None:
    example = how().example()
    assert tuple(example.shape) == (1, 3, 12)
    assert torch.equal(example, how().example())
    assert example[0, 1].tolist() == [1] * 9 + [0] * 3
    assert set(example[0, 2].tolist()) == {0, 1}
