"""Top-1, agreement and SQNR of logits with known predictions."""

import numpy as np
import pytest
import torch
from torch import nn

from qplug import InputError
from qplug.core.task import CLASSIFICATION, TASKS
from qplug.core.types import MASKED
from qplug.pipeline.answers import answers_of


def task_of(float_, *_):
    return CLASSIFICATION if float_.dim() == 2 else TASKS["question_answering"]


def compare(float_, quantized, labels):
    return task_of(float_).metrics(float_, quantized, labels)


def logits(*classes):
    return torch.eye(4)[list(classes)] * 10.0


def test_fractions():
    metrics = compare(logits(0, 1, 2, 3), logits(0, 1, 2, 2), torch.tensor([0, 3, 3, 2]))
    assert (metrics["float.top1"], metrics["quantized.top1"], metrics["quantized.agreement"]) == (0.25, 0.5, 0.75)


def test_sqnr_of_the_logits():
    torch.manual_seed(0)
    y, noise = torch.randn(6, 4), torch.randn(6, 4) * 0.1
    found = compare(y, y + noise, torch.zeros(6, dtype=torch.int64))
    exact = (y + noise - y).double().numpy()
    expected = 10 * np.log10((y.double().numpy() ** 2).sum() / (exact**2).sum())
    assert found["quantized.logit_sqnr_db"] == pytest.approx(expected)
    assert compare(y, y, torch.zeros(6, dtype=torch.int64))["quantized.logit_sqnr_db"] == float("inf")


def test_every_model_evaluates_every_image_once():
    double, done = nn.Linear(4, 4, bias=False), []
    with torch.no_grad():
        double.weight.copy_(2 * torch.eye(4))
    images, labels = torch.randn(5, 4), torch.arange(5) % 4
    batches = zip(images.split(2), labels.split(2), strict=True)
    (first, second), truth = answers_of([nn.Identity(), double], batches, done.append)
    assert torch.equal(first.outputs, images)
    assert torch.allclose(second.outputs, 2 * images)
    assert torch.equal(truth, labels)
    assert done == [2, 4, 5]
    assert not second.outputs.requires_grad
    assert first.seconds > 0


def test_a_label_without_an_output_is_refused():
    with pytest.raises(InputError, match="label 4, and the model has 4 outputs"):
        answers_of([nn.Identity()], [(torch.randn(2, 4), torch.tensor([0, 4]))])


def test_the_results_of_each_example_give_the_same_metrics():
    torch.manual_seed(0)
    y, noise, labels = torch.randn(6, 4), torch.randn(6, 4) * 0.5, torch.arange(6) % 4
    rows = {
        name: value.numpy() for name, value in task_of(y, y + noise, labels).by_example(y, y + noise, labels).items()
    }
    metrics = compare(y, y + noise, labels)
    assert (rows["quantized.top1"] == rows["labels"]).mean() == pytest.approx(metrics["quantized.top1"])
    assert (rows["quantized.top1"] == rows["float.top1"]).mean() == pytest.approx(metrics["quantized.agreement"])
    sqnr = 10 * np.log10(rows["logits.signal"].sum() / rows["logits.noise"].sum())
    assert sqnr == pytest.approx(metrics["quantized.logit_sqnr_db"], abs=1e-4)


def spans(*places, length=6, padded=2):
    """(N, 2, length) logits with maxima at these (start, end); the last ``padded`` tokens are padding."""
    torch.manual_seed(0)
    scores = torch.randn(len(places), 2, length)
    for row, (start, end) in zip(scores, places, strict=True):
        row[0, start], row[1, end] = 10.0, 10.0
    scores[:, :, length - padded :] = MASKED
    return scores


def test_an_answer_counts_if_start_and_end_are_correct():
    float_, quantized = spans((0, 1), (2, 3), (1, 1), (2, 2)), spans((0, 1), (2, 2), (0, 1), (2, 2))
    labels = torch.tensor([[0, 1], [2, 3], [0, 1], [-1, -1]])
    metrics = compare(float_, quantized, labels)
    assert (metrics["float.top1"], metrics["quantized.top1"], metrics["quantized.agreement"]) == (0.5, 0.5, 0.5)
    rows = task_of(float_, quantized, labels).by_example(float_, quantized, labels)
    assert rows["labels"].tolist() == [1, 15, 1, -1]
    assert rows["float.top1"].tolist() == [1, 15, 7, 14]
    assert (rows["quantized.top1"] == rows["labels"]).tolist() == [True, False, True, False]


def test_the_sqnr_excludes_padding():
    float_ = spans((0, 1), (2, 3))
    quantized = torch.where(float_ == MASKED, float_, float_ + 0.5)
    rows = task_of(float_, quantized, torch.zeros(2, 2, dtype=torch.int64)).by_example(
        float_, quantized, torch.zeros(2, 2, dtype=torch.int64)
    )
    signal = float_[:, :, :4].double().square().sum((1, 2))
    assert rows["logits.signal"].tolist() == pytest.approx(signal.tolist())
    assert rows["logits.noise"].tolist() == pytest.approx([2.0, 2.0])
    metrics = compare(float_, quantized, torch.zeros(2, 2, dtype=torch.int64))
    assert metrics["quantized.logit_sqnr_db"] == pytest.approx(10 * np.log10(float(signal.sum()) / 4.0))


def test_labels_of_another_task_are_refused():
    with pytest.raises(InputError, match="the model predicts classes, and the labels are answers to questions"):
        answers_of([nn.Identity()], [(torch.randn(2, 4), torch.zeros(2, 2, dtype=torch.int64))])
    with pytest.raises(InputError, match="the model predicts answers to questions, and the labels are classes"):
        answers_of([nn.Identity()], [(torch.randn(2, 2, 4), torch.zeros(2, dtype=torch.int64))])
