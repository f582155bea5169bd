"""Plans for a toy, quantizers with numbers worked out by hand, and what they compute in plain torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qplug.core.types import Granularity, QuantSpec, Site, SiteKind
from qplug.models.attention import MatMul
from qplug.quantization.calibration.calibrator import Calibration
from qplug.quantization.plan import Decision, Plan
from qplug.quantization.quantizers import LogQuantizer, Quantizer, Region, RegionQuantizer, UniformQuantizer
from qplug.quantization.sites import SiteMap

T, C, H = Granularity.PER_TENSOR, Granularity.PER_CHANNEL, Granularity.PER_HEAD
REGIONS = (Region(-(1 << 30), 0, -3, 0), Region(0, 3, 0, 3), Region(32, 5, 0, 7))

SETTINGS = {
    "4 bits": (QuantSpec(4, C), QuantSpec(4)),
    "weights per tensor": (QuantSpec(3, T), QuantSpec(8)),
    "asymmetric": (QuantSpec(4, C, False), QuantSpec(4, T, False)),
    "float zero point": (QuantSpec(4, C), QuantSpec(4, T, False, "float")),
    "channels of activations": (QuantSpec(6, C), QuantSpec(5, C)),
    "heads": (QuantSpec(4, C), QuantSpec(4, H)),
    "16 bits": (QuantSpec(16, C), QuantSpec(16)),
}
"""Name → what is asked of weights and of activations."""

Number = tuple[Callable[[], Quantizer], Sequence[Any], Sequence[Any]]


def symmetric(scale: float, bits: int, signed: bool = True) -> UniformQuantizer:
    """One scale, and no zero point."""
    return UniformQuantizer(torch.tensor(scale), None, bits, signed)


NUMBERS: dict[str, Number] = {
    "uniform": (lambda: symmetric(0.5, 3), [-3, -1.2, -0.25, 0.3, 0.75, 9], [-2, -1, 0, 0.5, 1, 1.5]),
    "uniform, unsigned": (lambda: symmetric(0.5, 3, signed=False), [-1, 0.2, 0.3, 9], [0, 0, 0.5, 3.5]),
    "uniform, zero point": (
        lambda: UniformQuantizer(torch.tensor(0.5), torch.tensor(2.0), 3, False),
        [-2, -0.6, 0.3, 9],
        [-1, -0.5, 0.5, 2.5],
    ),
    "uniform, channels": (
        lambda: UniformQuantizer(torch.tensor([0.5, 1.0, 2.0]), None, 3, True),
        [0.8, 0.8, 0.8],
        [1, 1, 0],
    ),
    "log": (lambda: LogQuantizer(1.0, 1, bits=2), [1, 0.6, 0.3, 0.1, 0, -1], [1, 0.5, 0.25, 0, 0, 0]),
    "log, √2": (lambda: LogQuantizer(2.0, 2, bits=3), [3, 1.4, 1.1], [2, 2**0.5, 1]),
    "regions": (
        lambda: RegionQuantizer(0.05, REGIONS, 4),
        [-1, -0.05, 0.4, 1, 2, 20],
        [-0.15, -0.05, 0.4, 1.2, 1.6, 11.2],
    ),
}
"""Quantizer → values and what becomes of them, worked out by hand from each paper's equation."""


def plan_of(
    found: SiteMap, calibration: Calibration, weights: QuantSpec, activations: QuantSpec, leave: Sequence[str] = ()
) -> Plan:
    """Min-max ranges for every site but those of ``leave``; at 4 bits, regions behind GELUs."""
    plan = Plan()
    for site in found.sites:
        if site.name in leave:
            continue
        spec = weights if site.kind.is_weight else activations
        if spec.granularity is H and site.head_axis is None:
            spec = replace(spec, granularity=T)
        stats = calibration.stats(site)
        quantizer: Quantizer = UniformQuantizer.from_range(*stats.range(spec.granularity), spec)
        if site.kind is SiteKind.POST_GELU and activations == QuantSpec(4):
            quantizer = RegionQuantizer(0.05, REGIONS, 4)
        plan.decisions[site.name] = Decision(site, spec, quantizer, "toy", "", "recipe")
    return plan


@torch.no_grad()
def reference(model: nn.Module, plan: Plan, images: Tensor) -> Tensor:
    """The same in plain torch: weights replaced by their values, inputs by hooks, matmuls by theirs."""
    model = copy.deepcopy(model)
    for path in plan.modules():
        module, quantizers = model.get_submodule(path), plan.of(path)
        if "weight" in quantizers:
            weight = module.get_parameter("weight")
            weight.copy_(quantizers["weight"](weight))
        roles = ("lhs", "rhs") if isinstance(module, MatMul) else ("input",)
        chosen = [quantizers.get(role) for role in roles]
        module.register_forward_pre_hook(
            lambda _, args, chosen=chosen: (
                *(q(x) if q else x for q, x in zip(chosen, args[: len(chosen)], strict=True)),
                *args[len(chosen) :],  # a mask
            )
        )
    out: Tensor = model(images)
    return out


def relative(one: Tensor, other: Tensor) -> float:
    """The distance of ``one`` from ``other``, as a share of the norm of ``other``."""
    return float((one - other).norm() / other.norm())


def single(role: Any, kind: SiteKind, shape: tuple[int, ...], quantizer: Quantizer, module: str = "0") -> Plan:
    """One quantizer for one operand of ``module``."""
    site = Site(f"{module}.{role}", kind, module, role, shape)
    return Plan({site.name: Decision(site, QuantSpec(quantizer.bits), quantizer, "toy", "", "recipe")})
