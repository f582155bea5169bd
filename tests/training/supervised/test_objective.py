"""The training loss against float64 NumPy, and refused labels."""

import numpy as np
import pytest
import torch

from qplug import InputError
from qplug.core.task import CLASSIFICATION
from qplug.training.supervised.config import Distill, FineTune
from qplug.training.supervised.objective import TrainingObjective


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize(("weight", "temperature"), [(None, 1.0), (0.3, 2.0), (1.0, 1.0)])
def test_the_loss_equals_the_formula(weight, temperature):
    draw = np.random.default_rng(0)
    student, teacher, labels = draw.normal(size=(6, 4)), draw.normal(size=(6, 4)), np.arange(6) % 4
    smooth = np.eye(4)[labels] * 0.9 + 0.1 / 4
    expected = -(smooth * np.log(softmax(student))).sum()
    if weight is not None:
        p, q = softmax(teacher / temperature), softmax(student / temperature)
        expected = (1 - weight) * expected + weight * temperature**2 * (p * np.log(p / q)).sum()
    distill = None if weight is None else Distill(weight=weight, temperature=temperature)
    settings = FineTune(epochs=1, label_smoothing=0.1, distill=distill)
    objective = TrainingObjective(settings, torch.nn.Identity() if weight is not None else None)
    logits = torch.tensor(student)
    loss, right = objective(logits, torch.tensor(labels), torch.tensor(teacher))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert int(right) == (student.argmax(1) == labels).sum()


def test_labels_that_are_no_classes_are_refused():
    with pytest.raises(InputError, match=r"label 7, and the model has 4 outputs"):
        CLASSIFICATION.check_labels(torch.tensor([0, 7]), torch.zeros(2, 4), "data.training")
    with pytest.raises(InputError, match=r"label -1, and classes count from 0"):
        CLASSIFICATION.check_labels(torch.tensor([0, -1]), torch.zeros(2, 4), "data.training")
    with pytest.raises(InputError, match=r"to train on, received \(2, 2, 5\)"):
        TrainingObjective(FineTune(epochs=1))(torch.zeros(2, 2, 5), torch.zeros(2), torch.zeros(2))
