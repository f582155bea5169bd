"""Plans for small models, and what they compute in plain torch, for every backend."""

import copy
from dataclasses import replace

import torch

from qplug import Granularity, Plan, QuantSpec, Region, RegionQuantizer, SiteKind, UniformQuantizer
from qplug.models.attention import MatMul
from qplug.quantization.plan import Decision

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


def plan_of(found, calibration, weights, activations, leave=()):
    plan = Plan()
    for site in found.sites:
        if site.name in leave:
            continue
        spec = weights if site.kind.is_weight else activations
        if spec.granularity is H and site.head_axis is None:
            spec = replace(spec, granularity=T)
        stats = calibration.stats(site)
        quantizer = UniformQuantizer.from_range(*stats.range(spec.granularity), spec)
        if site.kind is SiteKind.POST_GELU and activations == QuantSpec(4):
            quantizer = RegionQuantizer(0.05, REGIONS, 4)
        plan.decisions[site.name] = Decision(site, spec, quantizer, "toy", "", "recipe")
    return plan


def lowered(backend, known, weights=QuantSpec(4, C), activations=QuantSpec(4), leave=()):  # noqa: B008  frozen
    model, found, calibration, _ = known
    plan = plan_of(found, calibration, weights, activations, leave)
    return backend.apply(copy.deepcopy(model), plan), plan


@torch.no_grad()
def reference(model, plan, images):
    """The same in plain torch: weights replaced by their values, inputs by hooks, matmuls by theirs."""
    model = copy.deepcopy(model)
    for path in plan.modules():
        module, quantizers = model.get_submodule(path), plan.of(path)
        if "weight" in quantizers:
            module.weight.copy_(quantizers["weight"](module.weight))
        roles = ("lhs", "rhs") if isinstance(module, MatMul) else ("input",)
        chosen = [quantizers.get(role) for role in roles]
        module.register_forward_pre_hook(
            lambda _, args, chosen=chosen: (
                *(q(x) if q else x for q, x in zip(chosen, args[: len(chosen)], strict=True)),
                *args[len(chosen) :],  # a mask
            )
        )
    return model(images)


def relative(one, other):
    return float((one - other).norm() / other.norm())
