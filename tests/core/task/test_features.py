"""Features: losses whose gradient is that of a Hessian, k-NN and zero-shot by hand, and what labels change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from qplug.core.errors import InputError
from qplug.core.examples import Answers
from qplug.core.task import TASKS, Features
from qplug.core.task.features import LOSSES, ClassifiedFeatures, cosines
from qplug.core.task.nearest import TEMPERATURE, Bank, nearest_classes
from qplug.testing import TaskContract

RANDOM = torch.Generator().manual_seed(7)
ROWS = torch.randn(40, 6, generator=RANDOM)
LABELS = torch.arange(40) % 4


class TestVectors(TaskContract):
    task = Features()

    def examples(self):
        return ROWS, LABELS.tolist()


class TestMaps(TaskContract):
    task = Features()

    def examples(self):
        return torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1)), [0, 1, 2, 0, 1]


class TestClassified(TaskContract):
    task = ClassifiedFeatures()

    def examples(self):
        return ROWS, LABELS.tolist()


def test_squared_gradients_are_the_hessian_of_the_cosine_distance() -> None:
    x = torch.tensor([1.0, 2.0, -0.5])
    hessian = torch.autograd.functional.hessian(lambda y: 1 - torch.nn.functional.cosine_similarity(x, y, dim=0), x)
    torch.manual_seed(0)
    leaf = x.expand(20_000, 3).clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(LOSSES["cosine"](leaf), leaf)
    torch.testing.assert_close(gradient.square().mean(0), hessian.diagonal(), rtol=0.05, atol=0.0)


def test_neighbours_vote_as_a_weighted_classifier_does() -> None:
    torch.manual_seed(0)
    known, classes, unknown = torch.randn(60, 5), torch.randint(3, (60,)), torch.randn(30, 5)

    def weights(distances: np.ndarray) -> np.ndarray:
        return np.exp((1.0 - distances) / TEMPERATURE)

    reference = KNeighborsClassifier(n_neighbors=20, metric="cosine", weights=weights, algorithm="brute")
    expected = reference.fit(known.numpy(), classes.numpy()).predict(unknown.numpy())
    assert nearest_classes(unknown, Bank(known, classes)).tolist() == expected.tolist()


def test_no_example_is_its_own_neighbour() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.01, 1.0]])
    alone = torch.tensor([0, 1, 2, 3])  # the nearest other vector never has the own class
    assert (nearest_classes(vectors, Bank(vectors, alone, apart=True)) != alone).all()
    assert nearest_classes(vectors, Bank(vectors, alone)).tolist() == alone.tolist()
    assert nearest_classes(vectors[:1], Bank(vectors[:1], alone[:1], apart=True)).tolist() == [-1]


def test_each_model_is_judged_in_its_own_bank() -> None:
    turned = ROWS.flip(1)
    own = ClassifiedFeatures(float_bank=Bank(ROWS, LABELS), quantized_bank=Bank(turned, LABELS))
    found = own.metrics(ROWS, turned, LABELS)
    assert found["float.top1"] == found["quantized.top1"] > 0.9  # 20 of 40 neighbours vote, the example itself first
    assert found["quantized.cosine"] < 0.9
    assert own.judge(turned, LABELS) == found["quantized.top1"]


def test_class_embeddings_classify_by_cosine() -> None:
    embeddings = torch.eye(3)
    task = Features(embeddings).settled(torch.tensor([0, 1]))
    outputs = torch.tensor([[5.0, 1.0, 0.0], [0.1, 0.0, 0.2]])
    found = task.metrics(outputs, outputs * 3.0, torch.tensor([0, 1]))
    assert (found["float.top1"], found["quantized.top1"], found["quantized.agreement"]) == (0.5, 0.5, 1.0)
    with pytest.raises(InputError, match="label 3, and there are 3 class embeddings"):
        task.check_labels(torch.tensor([3]), outputs, "data.evaluation")
    with pytest.raises(InputError, match="embeddings have 3 channels, and the features 4"):
        task.check_labels(torch.tensor([0]), torch.zeros(1, 4), "data.evaluation")
    assert repr(Features(embeddings)) != repr(Features(2 * embeddings))


def test_labels_decide_what_is_judged() -> None:
    task = TASKS["features"]
    assert task.settled(torch.tensor([0, -1])) is task
    assert task.score == "cosine"
    assert task.settled(torch.tensor([0, 1])).score == "top1"
    assert task.judge(ROWS, LABELS) is None
    rows = task.by_example(ROWS, ROWS.roll(1, 0), LABELS)
    assert "quantized.top1" not in rows
    torch.testing.assert_close(rows["quantized.by_example"], cosines(ROWS, ROWS.roll(1, 0)).float())


def test_labels_of_other_kinds_are_refused() -> None:
    task = TASKS["features"]
    assert task.mismatch(3, (6,)) == ""
    assert task.mismatch((0, 1), (6,)) == "features are judged by classes, and the labels are answers"
    assert task.mismatch(Answers(0, 1, ("a",)), (6,)).endswith("the labels are answers")
    with pytest.raises(InputError, match="features") as error:
        task.training_loss(ROWS, LABELS, 0.0)
    assert error.value.where == "data.training"


def test_tiny_features_have_a_direction() -> None:
    tiny = ROWS * 1e-20
    assert cosines(tiny, tiny * 2.0).tolist() == [1.0] * len(ROWS)
