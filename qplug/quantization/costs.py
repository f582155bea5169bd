"""Size, bit operations and mean bits of a plan, by named conventions (``qplug.quantization.accounting``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from qplug.core.types import Granularity, QuantSpec, Site
from qplug.models.attention import MatMul
from qplug.quantization.accounting import CONVENTIONS, Convention
from qplug.quantization.plan import Decision, Plan
from qplug.quantization.quantizers import UniformQuantizer
from qplug.quantization.sites import SiteMap

FLOAT_BITS = 32


def account(model: nn.Module, plan: Plan, original: nn.Module | None = None) -> dict[str, float | None]:
    """Costs of ``plan`` on ``model`` (the float model, after rewrites and smoothing), by every convention.

    Args:
        model: whose operations the plan quantizes.
        plan: of that model.
        original: the float model before rewrites, whose size is ``float.size_mb``; ``model`` unless given.

    Returns:
        The values of ``costs`` under ``Convention.key``; ``bits.weights_mean`` and ``bits.activations_mean``, the mean
        bits over the elements of quantized sites; ``coverage.macs``, which is ``None`` if it is unknown.
    """
    counted = {
        convention.key(metric): value
        for convention in CONVENTIONS.values()
        for metric, value in costs(model, plan, convention, original).items()
    }
    return {
        **counted,
        "bits.weights_mean": _mean_bits(_weights(plan)),
        "bits.activations_mean": _mean_bits([d for d in plan if not d.site.kind.is_weight]),
        "coverage.macs": plan.coverage,
    }


def costs(model: nn.Module, plan: Plan, convention: Convention, original: nn.Module | None = None) -> dict[str, float]:
    """``size_mb`` and ``float.size_mb``; ``bops_g`` and ``float.bops_g`` in 10^9 bit operations per image.

    A size as stored also counts the buffers of the state dict, such as a rotation that a rewritten module holds.
    If a convention counts every parameter at the weights' bits, a quantized weight counts at its own bits. Its bias and
    the parameters outside operations (norms, embeddings) count at the mean bits of all quantized weights. The
    parameters of an operation with a float weight count at 32 bits [ours: the papers have one width everywhere].
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    bits = _stored_bits(parameters, plan) + _buffer_bits(model) if convention.stored else _bits_at_weights(model, plan)
    whole = original if original is not None else model
    float_bits = sum(parameter.numel() for parameter in whole.parameters()) * FLOAT_BITS
    float_bits += _buffer_bits(whole) if convention.stored else 0
    operations = _Operations.of(model, plan, convention)
    return {
        "size_mb": bits / 8 / convention.megabyte,
        "float.size_mb": float_bits / 8 / convention.megabyte,
        "bops_g": convention.operations * operations.bops / 1e9,
        "float.bops_g": convention.operations * operations.macs * FLOAT_BITS**2 / 1e9,
    }


def uniform_plan(site_map: SiteMap, weights: int, activations: int) -> Plan:
    """``plan_of`` with one width for all weights, and one for all activations."""
    return plan_of(site_map, lambda site: weights if site.kind.is_weight else activations)


def plan_of(site_map: SiteMap, bits: Callable[[Site], int]) -> Plan:
    """The plan that quantizes every operand of ``site_map`` at these bits, for costs without any calibration.

    Weights have one scale per channel, activations one per tensor. The values of the scales are placeholders.
    """
    decisions = {}
    for site in (site for site in site_map.sites if site.macs):
        spec = QuantSpec(bits(site), Granularity.PER_CHANNEL if site.kind.is_weight else Granularity.PER_TENSOR)
        decisions[site.name] = Decision(site, spec, UniformQuantizer(_scale(site), None, spec.bits, True), "", "", "")
    return Plan(decisions, float_macs=site_map.float_macs(decisions), total_macs=site_map.total_macs)


def _scale(site: Site) -> torch.Tensor:
    return torch.ones(site.shape[0], *[1] * (len(site.shape) - 1)) if site.kind.is_weight else torch.ones(())


def _weights(plan: Plan) -> list[Decision]:
    return [decision for decision in plan if decision.site.kind.is_weight]


def _stored_bits(parameters: int, plan: Plan) -> float:
    """Bits of weights in their formats with their scales, and of other parameters in float32."""
    weights = _weights(plan)
    rest = parameters - sum(d.site.numel for d in weights)
    return sum(d.quantizer.storage_bits(d.site.shape) for d in weights) + rest * FLOAT_BITS


def _buffer_bits(model: nn.Module) -> int:
    """Bits of the buffers that the state dict holds, each in its own dtype; a shared one counts once."""
    buffers = {
        id(buffer): buffer
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }
    return sum(buffer.numel() * buffer.element_size() * 8 for buffer in buffers.values())


def _bits_at_weights(model: nn.Module, plan: Plan) -> float:
    weights = {d.site.name: d for d in _weights(plan)}
    in_float = {module for module in plan.float_macs if f"{module}.weight" not in weights}
    mean = _mean_bits(weights.values())
    total = 0.0
    for name, parameter in model.named_parameters():
        if name in weights:
            total += weights[name].site.numel * weights[name].quantizer.bits
        else:
            total += parameter.numel() * (FLOAT_BITS if name.rpartition(".")[0] in in_float else mean)
    return total


@dataclass
class _Operations:
    """MACs of one image.

    Attributes:
        by_module: module → (MACs, bits of its quantized operands).
        other_macs: MACs outside these modules.
    """

    by_module: dict[str, tuple[int, list[int]]]
    other_macs: int

    @classmethod
    def of(cls, model: nn.Module, plan: Plan, convention: Convention) -> _Operations:
        """The operations that the convention counts. MACs without a module of their own always count."""
        by_module = {module: (macs, list[int]()) for module, macs in plan.float_macs.items()}
        for decision in (d for d in plan if d.site.macs):
            by_module.setdefault(decision.site.module, (decision.site.macs, []))[1].append(decision.quantizer.bits)
        other_macs = plan.total_macs - sum(macs for macs, _ in by_module.values())
        if not convention.attention:
            matmuls = {name for name, module in model.named_modules() if isinstance(module, MatMul)}
            by_module = {module: entry for module, entry in by_module.items() if module not in matmuls}
        return cls(by_module, other_macs)

    @property
    def macs(self) -> int:
        return sum(macs for macs, _ in self.by_module.values()) + self.other_macs

    @property
    def bops(self) -> int:
        """MACs × bits × bits; an operand without a quantizer has 32 bits."""
        operands = ((macs, *bits, FLOAT_BITS, FLOAT_BITS) for macs, bits in self.by_module.values())
        return sum(macs * left * right for macs, left, right, *_ in operands) + self.other_macs * FLOAT_BITS**2


def _mean_bits(decisions: Iterable[Decision]) -> float:
    decisions = list(decisions)
    elements = sum(d.site.numel for d in decisions)
    return sum(d.quantizer.bits * d.site.numel for d in decisions) / elements if elements else float(FLOAT_BITS)
