"""Each forward of a quantized model calls every planned module, or the first that misses one is refused by name."""

import pytest
import torch
from torch import nn

from qplug import InputError, PluginError, Site, SiteKind
from qplug.core.types import QuantSpec
from qplug.quantization.calls import check_calls, check_one_forward, checked_calls, refuse_bypassed
from qplug.quantization.plan import Decision, Plan
from qplug.quantization.quantizers import UniformQuantizer

X = torch.randn(2, 3)


def plan_of(**calls):
    """A plan of linears with their calls."""
    sites = [Site(f"{n}.weight", SiteKind.LINEAR_WEIGHT, n, "weight", (3, 3), 9) for n in calls]
    quantizer = UniformQuantizer(torch.ones(()), None, 8, True)
    return Plan({s.name: Decision(s, QuantSpec(8), quantizer, "", "", "") for s in sites}, calls=dict(calls))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.skip = nn.Linear(3, 3), nn.Linear(3, 3), False

    def forward(self, x):
        return self.one(self.two(self.one(x))) if not self.skip else self.two(x)


def test_more_calls_than_before_are_no_fault_and_hooks_are_removed():
    model = Net().eval()
    check_one_forward(model, plan_of(one=2, two=1), X, "the model")
    check_one_forward(model, plan_of(one=1, two=1), X, "the model")
    model.skip = True
    model(X)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_every_module_that_is_called_less_often_is_named():
    with pytest.raises(
        InputError, match=r"the model calls .*: one \(weight\) 2 × instead of 3 ×, two \(weight\) 1 × instead of 2 ×"
    ):
        check_one_forward(Net().eval(), plan_of(one=3, two=2), X, "the model")


def test_one_forward_among_many_is_enough():
    model = Net().eval()
    with checked_calls(model, plan_of(one=2), "it"):
        model(X)
        model.skip = True
        with pytest.raises(InputError, match=r"one \(weight\) 0 × instead of 2 ×"):
            model(X)


def test_another_model_beside_it_does_not_count():
    model, other = Net().eval(), Net().eval()
    other.skip = True
    with checked_calls(model, plan_of(one=2), "it"):
        model(X)
        other(X)
        model(X)


def test_a_module_without_a_count_is_not_required():
    plan = plan_of(one=2)
    plan.calls = {}
    check_calls({}, plan, "a folder of an earlier version")


def test_a_backend_that_moves_modules_is_told_so():
    with pytest.raises(PluginError, match="left no module at three"):
        check_one_forward(Net(), plan_of(three=1), X, "the model")


def test_sites_that_are_passed_by_matter_only_if_they_are_quantized():
    bypassed = {"one.weight": "aten.mm in (model) reads it past one", "two.weight": "…"}
    refuse_bypassed(bypassed, ["three.weight"])
    with pytest.raises(InputError, match=r"one\.weight: aten\.mm .*, two\.weight: …"):
        refuse_bypassed(bypassed, ["one.weight", "two.weight"])
