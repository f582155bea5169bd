"""The contract of tasks: right ones pass, and each wrong one is found by name."""

import pytest
import torch
from task_toys import Points, point_images

from qplug.core.task import CLASSIFICATION, TASKS
from qplug.testing import TaskContract


class TestClassification(TaskContract):
    task = CLASSIFICATION

    def examples(self):
        return torch.randn(5, 4, generator=torch.Generator().manual_seed(0)) * 3.0, [0, 1, 2, 3, 0]


class TestQuestionAnswering(TaskContract):
    task = TASKS["question_answering"]

    def examples(self):
        return torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(0)) * 3.0, [(0, 1), (2, 2), (4, 5)]


class TestPoints(TaskContract):
    task = Points()

    def examples(self):
        _, places = point_images(4)
        return torch.tensor([place.content() for place in places]) + 0.05, places


class Deaf(Points):
    def calibration_loss(self, name, outputs):
        return (outputs * 0.0).sum()


class Percent(Points):
    def judge(self, outputs, labels):
        return 100.0 * super().judge(outputs, labels)


class Unlike(Points):
    def agreement(self, first, second):
        return 0


class Whole(Points):
    def by_example(self, float_, quantized, labels):
        return {"quantized.by_example": self.scores(quantized, labels).mean()}


class Writing(Points):
    def metrics(self, float_, quantized, labels):
        found = super().metrics(float_, quantized, labels)
        quantized.zero_()
        return found


@pytest.mark.parametrize(
    ("task", "test", "message"),
    [
        (Deaf(), "its_losses_have_gradients", "points, logits: the gradient is zero"),
        (Percent(), "metrics_are_fractions", "points: metrics outside 0 … 1"),
        (Unlike(), "metrics_are_fractions", "points: equal outputs agree to 0.0"),
        (Whole(), "each_example_has_a_result", "quantized.by_example is no value for each example"),
        (Writing(), "it_changes_nothing", "points writes to outputs"),
    ],
)
def test_a_wrong_task_is_found(task, test, message):
    contract = TestPoints()
    contract.task = task
    with pytest.raises(AssertionError, match=message):
        getattr(contract, f"test_{test}")()
