"""Metrics of plugins that no recipe names: none of them can end a run, and each that fails is named."""

import copy
import math

import pytest
import torch
import trial_techniques as trial

import qplug
from qplug.hooks.metrics import measure
from qplug.hooks.registry import Plugin
from qplug.testing import toy_recipe, toy_registry

OWNER = Plugin("odd", "qplug-odd", "0.3", "qplug_odd")


def registry_with(**metrics):
    registry = copy.copy(toy_registry(trial.Bits))
    registry.metrics = {f"odd.{name}": qplug.Metric(name, compute) for name, compute in metrics.items()}
    registry.owners = registry.owners | {f"metric:{name}": OWNER for name in registry.metrics}
    return registry


def measured(compute):
    logits = torch.zeros(4, 3)
    return measure(registry_with(it=compute), 0, logits, logits, torch.arange(4))


@pytest.mark.parametrize("value", [0.5, 3, torch.tensor(0.5), torch.tensor([2]), math.inf])
def test_a_number_is_kept(value):
    values, warnings = measured(lambda *_: value)
    assert warnings == []
    assert values == {"odd.it": float(value)}
    assert type(values["odd.it"]) in (int, float)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("0.5", "TypeError: a number was expected, got '0.5'"),
        (None, "TypeError: a number was expected, got None"),
        (True, "TypeError: a number was expected, got True"),
        ({}, "TypeError: a number was expected, got {}"),
        (math.nan, "ValueError: a number was expected, got NaN"),
        (torch.zeros(3), "RuntimeError: "),
    ],
)
def test_anything_else_is_a_missing_value_and_a_warning(value, reason):
    values, (warning,) = measured(lambda *_: value)
    assert values == {}
    assert warning.startswith(f"metric odd.it of qplug-odd 0.3 has no value: {reason}")


def test_settings_of_torch_are_restored():
    values, warnings = measured(lambda *_: torch.set_default_dtype(torch.float64) or 1.0)
    assert values == {"odd.it": 1.0}
    assert torch.get_default_dtype() is torch.float32
    (warning,) = warnings
    assert warning.startswith("metric odd.it of qplug-odd 0.3 changed the default dtype from torch.float32 to ")
    assert warning.endswith("; qplug restored it")


def test_a_metric_draws_the_same_numbers_whatever_else_is_installed():
    draw = lambda *_: float(torch.rand(()))  # noqa: E731
    logits, labels = torch.zeros(4, 3), torch.arange(4)
    alone = measure(registry_with(it=draw), 0, logits, logits, labels)[0]["odd.it"]
    assert measure(registry_with(other=draw, it=draw), 0, logits, logits, labels)[0]["odd.it"] == alone


def test_a_run_survives_every_metric_and_says_which_failed():
    def leave(*_):
        raise SystemExit(0)

    registry = registry_with(boom=lambda *_: 1 / 0, leave=leave, text=lambda *_: "good", fine=lambda *_: 2.5)
    result = qplug.run(toy_recipe(trial.Bits, registry=registry), out=None, registry=registry)
    assert {name: value for name, value in result.metrics.items() if name.startswith("odd.")} == {"odd.fine": 2.5}
    failed = [warning for warning in result.warnings if warning.startswith("metric ")]
    assert failed == [
        "metric odd.boom of qplug-odd 0.3 has no value: ZeroDivisionError: division by zero",
        "metric odd.leave of qplug-odd 0.3 has no value: SystemExit: 0",
        "metric odd.text of qplug-odd 0.3 has no value: TypeError: a number was expected, got 'good'",
    ]


def test_a_metric_that_writes_to_what_it_is_given_changes_nothing_for_the_others():
    logits, labels = torch.ones(4, 3), torch.arange(4)
    registry = registry_with(
        first=lambda f, q, y: float(f.zero_().sum() + q.zero_().sum() + y.zero_().sum()),
        second=lambda f, q, y: float(f.sum() + q.sum() + y.sum()),
    )
    values, warnings = measure(registry, 0, logits, logits.clone(), labels)
    assert (values, warnings) == ({"odd.first": 0.0, "odd.second": 30.0}, [])
    assert labels.tolist() == [0, 1, 2, 3]
