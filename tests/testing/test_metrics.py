"""The contract of metrics: right ones pass, and each wrong one is found by name."""

import itertools

import pytest
import torch

from qplug import Metric
from qplug.testing import MetricContract


def agreement(float_logits, logits, labels):
    return float((float_logits.argmax(1) == logits.argmax(1)).double().mean())


def sampled(float_logits, logits, labels):
    return torch.randperm(len(logits))[0]


class TestMetrics(MetricContract):
    metrics = (Metric("agreement", agreement), Metric("sampled", sampled))


count = itertools.count()


@pytest.mark.parametrize(
    ("metric", "test", "message"),
    [
        (Metric("My Metric", agreement), "it_has_a_name", "'My Metric' must consist of small letters"),
        (Metric("text", lambda a, b, c: "1.0"), "it_is_a_number_for_any_answers", "text, ordinary answers: TypeError"),
        (
            Metric("zero", lambda a, b, c: 1 / float((a != b).sum())),
            "it_is_a_number_for_any_answers",
            "equal answers: ",
        ),
        (Metric("std", lambda a, b, c: b.std(0).mean()), "it_is_a_number_for_any_answers", "one example: ValueError"),
        (Metric("counts", lambda a, b, c: next(count)), "it_is_the_same_every_time", "counts: the same answers give"),
        (Metric("writes", lambda a, b, c: float(b.zero_().sum())), "it_changes_nothing", "writes writes to the logits"),
        (
            Metric("rude", lambda a, b, c: torch.set_default_dtype(torch.float64) or 1.0),
            "it_changes_nothing",
            "rude changes the default dtype",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:std")
def test_the_suite_finds_what_is_wrong(metric, test, message):
    with pytest.raises(AssertionError, match=message):
        getattr(MetricContract(), f"test_{test}")(metric)
