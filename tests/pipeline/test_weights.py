"""Weights are stored as codes only where that loses nothing, and whatever stays in float is named."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from qplug import (
    Granularity,
    InputError,
    LogQuantizer,
    QuantSpec,
    Region,
    RegionQuantizer,
    Site,
    SiteKind,
    UniformQuantizer as Uniform,
)
from qplug.core.storage.run_folder import RunFolder
from qplug.pipeline.weights import load_weights, read_weights, write_weights
from qplug.quantization.plan import Decision, Plan

SPEC = QuantSpec(4)


def plan_of(model: nn.Module, **quantizers) -> Plan:
    """A plan that quantizes the weight of the linears that ``quantizers`` names."""
    plan = Plan()
    for path, quantizer in quantizers.items():
        shape = tuple(model.get_submodule(path).weight.shape)
        site = Site(f"{path}.weight", SiteKind.LINEAR_WEIGHT, path, "weight", shape)
        plan.decisions[site.name] = Decision(site, SPEC, quantizer, "trial", "", "recipe")
    return plan


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3, bias=False)).requires_grad_(False)


def through(tmp_path, model: nn.Module, plan: Plan) -> tuple[dict[str, Tensor], list[str], dict[str, Tensor]]:
    """Written and read: the file's own tensors, the warnings, and the state that comes back."""
    with RunFolder(tmp_path / "run", required=()) as folder:
        warnings = write_weights(folder, model, plan)
    path = tmp_path / "run" / "model.safetensors"
    return load_file(path), warnings, read_weights(path, plan)


def per_channel(bits: int, symmetric: bool, weight: Tensor) -> Uniform:
    spec = QuantSpec(bits, Granularity.PER_CHANNEL, symmetric)
    return Uniform.from_range(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), spec)


QUANTIZERS = {
    **{f"uniform {bits}": (lambda w, bits=bits: per_channel(bits, True, w)) for bits in (2, 3, 8, 16)},
    **{f"asymmetric {bits}": (lambda w, bits=bits: per_channel(bits, False, w)) for bits in (2, 5, 16)},
    "log": lambda w: LogQuantizer(w.max(), 2, 4),
    "regions": lambda w: RegionQuantizer(0.02, (Region(-64, 0, -4, -1), Region(0, 3, 0, 3), Region(32, 5, 0, 7)), 4),
}


@pytest.mark.parametrize("make", QUANTIZERS.values(), ids=QUANTIZERS)
def test_what_round_trips_is_the_quantized_weight(tmp_path, make):
    model = small()
    weight = model[0].weight.detach()
    quantizer = make(weight)
    held, warnings, state = through(tmp_path, model, plan_of(model, **{"0": quantizer}))
    assert warnings == []
    assert held["0.weight.codes"].shape == (-(-30 * quantizer.bits // 8),)
    assert "0.weight" not in held
    assert torch.equal(state.pop("0.weight"), quantizer.infer(weight))
    expected = model.state_dict()
    expected.pop("0.weight")
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert state.keys() == expected.keys()


class WithoutCodes(Uniform):
    kind = "without"

    def encode(self, x):
        raise NotImplementedError("WithoutCodes has no integers")


class OtherValues(Uniform):
    def decode(self, codes):
        return super().decode(codes) * 1.0000001


class Moves(Uniform):
    """Not idempotent: what it makes of a weight is not what it makes of that."""

    def infer(self, x):
        return super().infer(x) + self.scale

    def decode(self, codes):
        return super().decode(codes) + self.scale


class TooManyCodes(Uniform):
    def encode(self, x):
        return super().encode(x) + 1


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (WithoutCodes, "WithoutCodes has no integers"),
        (OtherValues, "OtherValues's codes do not give back its values"),
        (Moves, "Moves does not leave its values as they are"),
        (TooManyCodes, "expected codes of 4 bits in 0 … 15"),
    ],
)
def test_what_codes_would_lose_stays_in_float_and_is_named(tmp_path, kind, reason):
    model = small()
    scale = model[0].weight.detach().abs().max() / 7
    plan = plan_of(model, **{"0": kind(scale, None, 4, True), "2": Uniform(torch.tensor(0.1), None, 4, True)})
    held, (warning,), state = through(tmp_path, model, plan)
    assert reason in warning
    assert "1 quantized weight in float32" in warning
    assert "0.weight" in warning
    assert "2.weight" not in warning
    assert torch.equal(held["0.weight"], model[0].weight)
    assert torch.equal(state["0.weight"], model[0].weight)
    assert "2.weight.codes" in held


def test_a_weight_that_another_name_shares_stays_in_float(tmp_path):
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["embedding"].weight
    plan = plan_of(model, head=Uniform(torch.tensor(0.1), None, 4, True))
    _, (warning,), state = through(tmp_path, model, plan)
    assert "another name shares it" in warning
    assert torch.equal(state["head.weight"], model["embedding"].weight)


def test_parameters_that_smoothing_made_are_made_again(tmp_path):
    model = small()
    plan = plan_of(model, **{"0": per_channel(4, True, model[0].weight.detach())})
    model[2].bias = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]), requires_grad=False)
    through(tmp_path, model, plan)
    other = small()
    load_weights(other, tmp_path / "run" / "model.safetensors", plan)
    assert torch.equal(other[2].bias, model[2].bias)


def test_codes_that_the_plans_quantizer_cannot_have_made(tmp_path):
    model = small()
    wrong = RegionQuantizer(0.02, (Region(0, 0, 0, 3),), 4)  # 4 of 16 codes
    through(tmp_path, model, plan_of(model, **{"0": Uniform(torch.tensor(0.05), None, 4, True)}))
    with pytest.raises(InputError, match=r"0\.weight does not belong to plan\.json \(regions int4"):
        read_weights(tmp_path / "run" / "model.safetensors", plan_of(model, **{"0": wrong}))
    scales = Uniform(torch.ones(7, 1), None, 4, True)
    with pytest.raises(InputError, match=r"0\.weight does not belong to plan\.json \(uniform int4 ×7"):
        read_weights(tmp_path / "run" / "model.safetensors", plan_of(model, **{"0": scales}))
