"""Backends and export formats lower a plan by one walk: same refusal, and one row for a new type of module."""

from __future__ import annotations

import copy

import pytest
import torch
from backend_toys import reference, relative
from brevitas.nn import QuantConv1d
from torch import nn

from qplug import InputError, Plan, QuantSpec, Site, SiteKind, UniformQuantizer
from qplug.export.formats import lowering as formats
from qplug.export.formats.torch_program import Plain
from qplug.models.attention import MatMul
from qplug.quantization.backends.brevitas import BrevitasBackend
from qplug.quantization.lowering import replace_planned
from qplug.quantization.plan import Decision


def plan_of(path: str, **ranges: tuple[torch.Tensor, torch.Tensor]) -> Plan:
    """A plan for one convolution or linear, ``ranges`` by role."""
    plan, spec = Plan(), QuantSpec(4)
    for role, (low, high) in ranges.items():
        kind = SiteKind.CONV_WEIGHT if role == "weight" else SiteKind.CONV_INPUT
        quantizer = UniformQuantizer.from_range(low, high, spec)
        plan.decisions[f"{path}.{role}"] = Decision(
            Site(f"{path}.{role}", kind, path, role, ()), spec, quantizer, "toy", "", "recipe"
        )
    return plan


def backend_apply(model: nn.Module, plan: Plan) -> nn.Module:
    return BrevitasBackend().apply(copy.deepcopy(model), plan)


def export_lower(model: nn.Module, plan: Plan) -> nn.Module:
    return formats.lower(model, plan, Plain())


@pytest.mark.parametrize("lower", [backend_apply, export_lower])
@pytest.mark.parametrize("roles", [("weight",), ("input",), ("weight", "input")])
def test_a_new_type_of_module_is_one_row(lower, roles, monkeypatch):
    monkeypatch.setattr(BrevitasBackend, "layers", BrevitasBackend.layers | {nn.Conv1d: QuantConv1d})
    monkeypatch.setitem(formats.MAKERS, nn.Conv1d, formats._convolution)
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv1d(4, 6, 3, padding=1)).eval(), torch.randn(2, 4, 9)
    weight = model[0].weight.detach()
    ranges = {"weight": (weight.amin((1, 2), True), weight.amax((1, 2), True)), "input": (x.min(), x.max())}
    plan = plan_of("0", **{role: ranges[role] for role in roles})
    with torch.no_grad():
        found = lower(model, plan)(x)
        assert relative(found, reference(model, plan, x)) < 1e-6
        assert relative(found, model(x)) > 1e-3


class Scaled(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(("lower", "target"), [(backend_apply, "brevitas"), (export_lower, "an exported file")])
def test_a_subclass_is_refused_by_one_text(lower, target):
    plan = plan_of("0", weight=(torch.tensor(-1.0), torch.tensor(1.0)))
    with pytest.raises(InputError) as caught:
        lower(nn.Sequential(Scaled(3, 2)), plan)
    assert caught.value.what == f"{target} cannot hold a Scaled, only the Linear that it derives from"
    assert caught.value.where == "0"
    assert caught.value.fix == "leave it in float: quantize.overrides: [{match: '0', skip: true}]"


def test_makers_receive_the_decisions_of_a_module_by_role_and_others_the_rest():
    model = nn.ModuleDict({"matmul": MatMul(), "norm": nn.LayerNorm(3)}).train()
    plan = Plan()
    for path, role in (("matmul", "rhs"), ("norm", "input"), ("matmul", "lhs")):
        plan.decisions |= plan_of(path, **{role: (torch.tensor(-1.0), torch.tensor(1.0))}).decisions
    received = []

    def maker(name):
        def make(original, decisions):
            received.append((name, type(original), list(decisions)))
            return nn.Identity()

        return make

    replace_planned(model, plan, {MatMul: maker("row")}, maker("other"), "a test")
    assert received == [("row", MatMul, ["rhs", "lhs"]), ("other", nn.LayerNorm, ["input"])]
    assert not model["norm"].training
