"""Top-1, agreement and SQNR, on logits whose answer is known."""

import numpy as np
import pytest
import torch
from torch import nn

from qplug import InputError
from qplug.metrics import Logits, compare, evaluate


def logits(*classes):
    return torch.eye(4)[list(classes)] * 10.0


def test_shares():
    found = compare(Logits(logits(0, 1, 2, 3), logits(0, 1, 2, 2), torch.tensor([0, 3, 3, 2])))
    assert (found["float.top1"], found["quantized.top1"], found["quantized.agreement"]) == (0.25, 0.5, 0.75)


def test_sqnr_of_the_logits():
    torch.manual_seed(0)
    y, noise = torch.randn(6, 4), torch.randn(6, 4) * 0.1
    found = compare(Logits(y, y + noise, torch.zeros(6, dtype=torch.int64)))
    exact = (y + noise - y).double().numpy()
    expected = 10 * np.log10((y.double().numpy() ** 2).sum() / (exact**2).sum())
    assert found["quantized.logit_sqnr_db"] == pytest.approx(expected)
    assert compare(Logits(y, y, torch.zeros(6, dtype=torch.int64)))["quantized.logit_sqnr_db"] == float("inf")


def test_both_models_see_every_image_once():
    double, done = nn.Linear(4, 4, bias=False), []
    with torch.no_grad():
        double.weight.copy_(2 * torch.eye(4))
    images, labels = torch.randn(5, 4), torch.arange(5) % 4
    found = evaluate(nn.Identity(), double, zip(images.split(2), labels.split(2), strict=True), done.append)
    assert torch.equal(found.float_, images)
    assert torch.allclose(found.quantized, 2 * images)
    assert torch.equal(found.labels, labels)
    assert done == [2, 4, 5]
    assert not found.quantized.requires_grad
    assert set(found.seconds) == {"float", "quantized"}


def test_a_label_without_an_output_is_refused():
    with pytest.raises(InputError, match="label 4, and the model has 4 outputs"):
        evaluate(nn.Identity(), nn.Identity(), [(torch.randn(2, 4), torch.tensor([0, 4]))])
