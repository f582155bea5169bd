"""Answers as texts: the scores of SQuAD's published script, and the decoding of spans by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st
from sklearn.metrics import f1_score
from torchmetrics.functional.text import squad

from qplug.core.task import TASKS
from qplug.core.task.answers import TokenAnswers, best, decode, exact_match, f1, normalized
from qplug.core.task.question_answering import DecodedAnswers
from qplug.core.types import MASKED
from qplug.testing import TaskContract

CONTEXT = "The tower, of iron."
OFFSETS = (None, None, (0, 3), (4, 9), (9, 10), (11, 13), (14, 18), (18, 19), None)
"""``[CLS] question The tower , of iron . [PAD]``."""
WORDS = st.lists(st.sampled_from(["a", "The", "tower", "Iron", "of", "iron.", "x-y", "…", "an"]), max_size=5).map(
    " ".join
)


def answers(*texts: str, start: int = 3, end: int = 3) -> TokenAnswers:
    return TokenAnswers(start, end, texts, CONTEXT, OFFSETS)


def scores(start: int, end: int) -> torch.Tensor:
    """Scores that prefer a span, (2, 9), with padding at the end."""
    found = torch.zeros(2, 9)
    found[0, start] = found[1, end] = 5.0
    found[:, -1] = MASKED
    return found


@given(st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_scores_are_those_of_torchmetrics(pairs) -> None:
    predictions = [{"id": str(i), "prediction_text": text} for i, (text, _) in enumerate(pairs)]
    truth = [
        {"id": str(i), "answers": {"text": texts, "answer_start": [0] * len(texts)}}
        for i, (_, texts) in enumerate(pairs)
    ]
    expected = squad(predictions, truth)
    ours = {"exact_match": exact_match, "f1": f1}
    found = {name: 100 * sum(best(score, *pair) for pair in pairs) / len(pairs) for name, score in ours.items()}
    assert found["exact_match"] == pytest.approx(float(expected["exact_match"]), abs=1e-3)
    assert found["f1"] == pytest.approx(float(expected["f1"]), abs=1e-3)


def test_texts_are_normalized_as_published() -> None:
    assert normalized(" The  Tower, of an iron.") == "tower of iron"
    assert normalized("U.S.A.") == "usa"
    assert f1("iron tower", "the tower of iron") == pytest.approx(0.8)
    assert (best(f1, "", ()), best(f1, "iron", ())) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("start", "end", "text"), [(3, 3, "tower"), (2, 6, "The tower, of iron"), (6, 7, "iron."), (6, 3, "The tower")]
)
def test_the_best_span_is_decoded(start: int, end: int, text: str) -> None:
    """A pair in the wrong order is no span: one of the two ends decides."""
    found = decode(scores(start, end), answers("tower"), may_be_empty=False)
    assert found == text if start <= end else (text in found or "iron" in found)


def test_only_the_context_holds_answers_and_only_some_data_has_none() -> None:
    question = scores(1, 1)  # the question's own token
    assert decode(question, answers("tower"), may_be_empty=False) in CONTEXT
    none = scores(0, 0)
    assert decode(none, answers(), may_be_empty=True) == ""
    assert decode(none, answers(), may_be_empty=False) != ""
    empty = TokenAnswers(-1, -1, ("tower",), CONTEXT, (None,) * 9)
    assert decode(scores(3, 3), empty, may_be_empty=False) == ""


def test_a_long_span_is_no_answer() -> None:
    offsets = tuple((2 * index, 2 * index + 1) for index in range(40))
    long = TokenAnswers(0, 0, ("x",), "x " * 40, offsets)
    found = torch.zeros(2, 40)
    found[0, 0] = found[1, 39] = 1.0
    assert len(decode(found, long, may_be_empty=False).split()) <= 30


class TestDecoded(TaskContract):
    task = DecodedAnswers()

    def noisy(self, outputs):
        return outputs + 0.05 * torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0))

    def examples(self):
        outputs = torch.stack([scores(3, 3), scores(2, 3), scores(6, 6)])
        return outputs, [answers("tower"), answers("tower, of"), answers("copper", start=-1, end=-1)]


def test_metrics_of_answers_and_what_labels_decide() -> None:
    outputs, labels = TestDecoded().examples()
    task = TASKS["question_answering"].settled(TASKS["question_answering"].collect(labels))
    assert task.score == "f1"
    found = task.metrics(outputs, outputs.roll(1, 0), labels)
    assert found["float.exact_match"] == pytest.approx(1 / 3)
    assert found["float.f1"] == pytest.approx((1.0 + 2 / 3 + 0.0) / 3)
    assert found["float.top1"] == pytest.approx(1 / 3)
    rows = task.by_example(outputs, outputs, labels)
    assert rows["quantized.by_example"].tolist() == pytest.approx([1.0, 2 / 3, 0.0])
    pairs = TASKS["question_answering"].collect([(0, 1), (2, 2)])
    assert TASKS["question_answering"].settled(pairs).score == "top1"


def test_two_classes_have_an_f1() -> None:
    task = TASKS["sequence_classification"]
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    labels = torch.tensor([1, 1, 0, 0])
    found = task.metrics(logits, -logits, labels)
    assert found["float.f1"] == f1_score([1, 1, 0, 0], [1, 0, 1, 0]) == 0.5
    assert found["quantized.f1"] == 0.5
    assert task.metrics(logits * 0.0, logits, labels)["float.f1"] == 0.0  # no example is predicted as class 1
    three = torch.eye(3)
    assert "float.f1" not in task.metrics(three, three, torch.arange(3))
