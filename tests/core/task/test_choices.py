"""Top-1, agreement and SQNR, on logits whose answer is known."""

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


def test_shares():
    found = compare(logits(0, 1, 2, 3), logits(0, 1, 2, 2), torch.tensor([0, 3, 3, 2]))
    assert (found["float.top1"], found["quantized.top1"], found["quantized.agreement"]) == (0.25, 0.5, 0.75)


def test_sqnr_of_the_logits():
    torch.manual_seed(0)
    y, noise = torch.randn(6, 4), torch.randn(6, 4) * 0.1
    found = compare(y, y + noise, torch.zeros(6, dtype=torch.int64))
    exact = (y + noise - y).double().numpy()
    expected = 10 * np.log10((y.double().numpy() ** 2).sum() / (exact**2).sum())
    assert found["quantized.logit_sqnr_db"] == pytest.approx(expected)
    assert compare(y, y, torch.zeros(6, dtype=torch.int64))["quantized.logit_sqnr_db"] == float("inf")


def test_every_model_sees_every_image_once():
    double, done = nn.Linear(4, 4, bias=False), []
    with torch.no_grad():
        double.weight.copy_(2 * torch.eye(4))
    images, labels = torch.randn(5, 4), torch.arange(5) % 4
    batches = zip(images.split(2), labels.split(2), strict=True)
    (one, other), truth = answers_of([nn.Identity(), double], batches, done.append)
    assert torch.equal(one.outputs, images)
    assert torch.allclose(other.outputs, 2 * images)
    assert torch.equal(truth, labels)
    assert done == [2, 4, 5]
    assert not other.outputs.requires_grad
    assert one.seconds > 0


def test_a_label_without_an_output_is_refused():
    with pytest.raises(InputError, match="label 4, and the model has 4 outputs"):
        answers_of([nn.Identity()], [(torch.randn(2, 4), torch.tensor([0, 4]))])


def test_what_is_kept_of_every_image_gives_the_same_figures():
    torch.manual_seed(0)
    y, noise, labels = torch.randn(6, 4), torch.randn(6, 4) * 0.5, torch.arange(6) % 4
    kept = {
        name: value.numpy() for name, value in task_of(y, y + noise, labels).by_example(y, y + noise, labels).items()
    }
    found = compare(y, y + noise, labels)
    assert (kept["quantized.top1"] == kept["labels"]).mean() == pytest.approx(found["quantized.top1"])
    assert (kept["quantized.top1"] == kept["float.top1"]).mean() == pytest.approx(found["quantized.agreement"])
    sqnr = 10 * np.log10(kept["logits.signal"].sum() / kept["logits.noise"].sum())
    assert sqnr == pytest.approx(found["quantized.logit_sqnr_db"], abs=1e-4)


def spans(*places, length=6, padded=2):
    """(N, 2, length) logits whose largest are at these (start, end), the last ``padded`` tokens being padding."""
    torch.manual_seed(0)
    found = torch.randn(len(places), 2, length)
    for row, (start, end) in zip(found, places, strict=True):
        row[0, start], row[1, end] = 10.0, 10.0
    found[:, :, length - padded :] = MASKED
    return found


def test_an_answer_counts_where_start_and_end_are_right():
    float_, quantized = spans((0, 1), (2, 3), (1, 1), (2, 2)), spans((0, 1), (2, 2), (0, 1), (2, 2))
    labels = torch.tensor([[0, 1], [2, 3], [0, 1], [-1, -1]])
    found = compare(float_, quantized, labels)
    assert (found["float.top1"], found["quantized.top1"], found["quantized.agreement"]) == (0.5, 0.5, 0.5)
    rows = task_of(float_, quantized, labels).by_example(float_, quantized, labels)
    assert rows["labels"].tolist() == [1, 15, 1, -1]
    assert rows["float.top1"].tolist() == [1, 15, 7, 14]
    assert (rows["quantized.top1"] == rows["labels"]).tolist() == [True, False, True, False]


def test_padding_is_no_part_of_the_sqnr():
    float_ = spans((0, 1), (2, 3))
    quantized = torch.where(float_ == MASKED, float_, float_ + 0.5)
    rows = task_of(float_, quantized, torch.zeros(2, 2, dtype=torch.int64)).by_example(
        float_, quantized, torch.zeros(2, 2, dtype=torch.int64)
    )
    signal = float_[:, :, :4].double().square().sum((1, 2))
    assert rows["logits.signal"].tolist() == pytest.approx(signal.tolist())
    assert rows["logits.noise"].tolist() == pytest.approx([2.0, 2.0])
    found = compare(float_, quantized, torch.zeros(2, 2, dtype=torch.int64))
    assert found["quantized.logit_sqnr_db"] == pytest.approx(10 * np.log10(float(signal.sum()) / 4.0))


def test_labels_of_another_task_are_refused():
    with pytest.raises(InputError, match="the labels are answers to questions, and the model gives classes"):
        answers_of([nn.Identity()], [(torch.randn(2, 4), torch.zeros(2, 2, dtype=torch.int64))])
    with pytest.raises(InputError, match="the labels are classes, and the model gives answers to questions"):
        answers_of([nn.Identity()], [(torch.randn(2, 2, 4), torch.zeros(2, dtype=torch.int64))])
