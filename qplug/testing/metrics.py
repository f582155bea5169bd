"""The contract of metrics: a number for any answers, the same every time, and nothing changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from qplug.core.seeding import seeded
from qplug.core.types import Metric
from qplug.hooks.metrics import number
from qplug.hooks.torch_state import torch_state_kept

CLASSES = 5


class MetricContract:
    """Subclass it in a plugin's tests, and set ``metrics`` to what ``qplug_metrics`` returns::

        class TestMine(MetricContract):
            metrics = (Metric("kl", kl),)

    Every installed metric is computed in every run of a classifier, so it must have a value for any answers.
    """

    metrics: ClassVar[Sequence[Metric]] = ()

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """One test for each metric."""
        if "metric" in metafunc.fixturenames:
            metafunc.parametrize("metric", self.metrics, ids=lambda metric: str(metric.name))

    def answers(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Float logits, quantized logits and labels, as a run gives them: (N, classes) float32, and (N,) int64."""
        draw = torch.Generator().manual_seed(0)
        logits = torch.randn(12, CLASSES, generator=draw) * 3.0
        noisy = logits + torch.randn(logits.shape, generator=draw)
        labels = torch.arange(len(logits)) % CLASSES
        return {
            "ordinary answers": (logits, noisy, labels),
            "equal answers": (logits, logits.clone(), labels),
            "one example": (logits[:1], noisy[:1], labels[:1]),
            "answers that are all wrong": (logits, noisy, (logits.argmax(1) + 1) % CLASSES),
            "logits that are all equal": (torch.zeros_like(logits), torch.zeros_like(logits), labels),
        }

    def test_it_has_a_name(self, metric: Metric) -> None:
        """As a key of ``metrics.json``."""
        assert re.fullmatch(r"[a-z0-9_]+", str(metric.name)), (
            f"the name {metric.name!r} must consist of small letters, digits and _"
        )

    def test_it_is_a_number_for_any_answers(self, metric: Metric) -> None:
        """An int, a float, or a tensor of one element; never NaN."""
        for what, answers in self.answers().items():
            try:
                number(metric.compute(*answers))
            except Exception as error:
                raise AssertionError(f"{metric.name}, {what}: {type(error).__name__}: {error}") from error

    def test_it_is_the_same_every_time(self, metric: Metric) -> None:
        """Whatever was drawn from torch's generators before, as long as they begin alike."""
        answers, values = self.answers()["ordinary answers"], []
        for _ in range(2):
            with seeded("contract"):
                values.append(number(metric.compute(*answers)))
        assert values[0] == values[1], f"{metric.name}: the same answers give {values[0]} and {values[1]}"

    def test_it_changes_nothing(self, metric: Metric) -> None:
        """Neither the answers that it is given, nor settings of torch."""
        answers = self.answers()["ordinary answers"]
        before = [tensor.clone() for tensor in answers]
        with torch_state_kept() as changed:
            metric.compute(*answers)
        assert not changed, f"{metric.name} changes {', '.join(changed)}, for everyone behind it"
        for what, now, then in zip(("the float logits", "the logits", "the labels"), answers, before, strict=True):
            assert torch.equal(now, then), f"{metric.name} writes to {what}"
