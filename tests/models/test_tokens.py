"""Tokenization: three rows of tokens, labels as tokens, and counts of cut texts."""

from __future__ import annotations

import pytest
import torch

from qplug.core.errors import InputError
from qplug.data.text import TextItem

pytest.importorskip("tokenizers")

from text_toys import WORDS, word_pieces

from qplug.models.tokens import Tokenization

QUESTION = TextItem("delta", "alpha beta gamma delta epsilon")


def tokenization(length: int = 12, task: str = "question_answering") -> Tokenization:
    return Tokenization(word_pieces(WORDS * 3, 120).to_str(), length, task, "[PAD]")


def test_rows_are_tokens_mask_and_types() -> None:
    tokens = tokenization().transform()(QUESTION)
    assert tokens.dtype == torch.int64
    assert tuple(tokens.shape) == (3, 12)
    assert tokens[0, [0, 2, 8]].tolist() == [2, 3, 3]  # [CLS] delta [SEP] five words [SEP]
    assert tokens[1].tolist() == [1] * 9 + [0] * 3
    assert tokens[2].tolist() == [0] * 3 + [1] * 6 + [0] * 3
    assert torch.equal(
        tokenization(12, "sequence_classification").transform()(TextItem("alpha"))[1][:4], torch.tensor([1, 1, 1, 0])
    )


def test_an_answers_characters_become_tokens() -> None:
    transform = tokenization().transform()
    tokens = transform(QUESTION)
    first, last = transform.label(QUESTION, (17, 30))
    assert (first, last) == (6, 7)
    assert tokens[0, first] == tokens[0, 1]  # delta, as in the question
    assert transform.label(QUESTION, (0, 0)) == (0, 0)
    assert transform.losses() == []


def test_cut_texts_and_dropped_answers_are_counted() -> None:
    transform = tokenization(8).transform()
    assert transform.label(QUESTION, (0, 5)) == (3, 3)
    assert transform.label(QUESTION, (17, 22)) == (6, 6)
    assert transform.label(QUESTION, (17, 30)) == (-1, -1)
    assert transform.label(TextItem("delta", QUESTION.pair + " mu"), (23, 30)) == (-1, -1)
    transform.label(QUESTION, (17, 30))
    assert transform.losses() == [
        "2 texts were cut to max_length, 8 tokens",
        "2 answers are not within the first 8 tokens, and count as wrong",
    ]
    assert tokenization().transform().losses() == []


def test_long_questions_and_labels_of_another_task_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be cut to 8 tokens"):
        tokenization(8).transform()(TextItem(" ".join(WORDS), "alpha"))
    with pytest.raises(InputError, match="for question_answering, and the labels are classes"):
        tokenization().transform().label(QUESTION, 1)
    with pytest.raises(InputError, match="for sequence_classification, and the labels are answers"):
        tokenization(task="sequence_classification").transform().label(QUESTION, (0, 5))


def test_repr_is_stable_and_changes_with_every_attribute() -> None:
    text = repr(tokenization())
    assert text == repr(tokenization())
    assert text.startswith("Tokenization(max_length=12, task='question_answering', pad='[PAD]', digest='")
    other = Tokenization(word_pieces([*WORDS, "nu"] * 3, 120).to_str(), 12, "question_answering", "[PAD]")
    assert repr(other) != text
    assert repr(tokenization(13)) != text


def test_the_example_has_padding_and_two_types() -> None:
    example = tokenization().example()
    assert tuple(example.shape) == (1, 3, 12)
    assert torch.equal(example, tokenization().example())
    assert example[0, 1].tolist() == [1] * 9 + [0] * 3
    assert set(example[0, 2].tolist()) == {0, 1}
