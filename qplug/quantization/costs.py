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


def account(model: nn.Module, plan: Plan) -> dict[str, float]:
    """Costs of ``plan`` on ``model`` (the float model, after rewrites and smoothing), by every convention.

    Returns:
        what ``costs`` gives, under ``Convention.key``; ``bits.weights_mean`` and ``bits.activations_mean``: over the
        elements of quantized sites; ``coverage.macs``.
    """
    counted = {
        convention.key(metric): value
        for convention in CONVENTIONS.values()
        for metric, value in costs(model, plan, convention).items()
    }
    return {
        **counted,
        "bits.weights_mean": _mean_bits(_weights(plan)),
        "bits.activations_mean": _mean_bits([d for d in plan if not d.site.kind.is_weight]),
        "coverage.macs": plan.coverage,
    }


def costs(model: nn.Module, plan: Plan, convention: Convention) -> dict[str, float]:
    """``size_mb`` and ``float.size_mb``; ``bops_g`` and ``float.bops_g``, 10^9 bit operations of one image.

    Where a convention counts every parameter at the weights' bits, a quantized weight counts at its own, what its
    operation adds to it (a bias) and what belongs to no operation (norms, embeddings) at the mean of all quantized
    weights, and an operation whose weight stays in float in float32 [ours: the papers have one width everywhere].
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    bits = _stored_bits(parameters, plan) if convention.stored else _bits_at_weights(model, plan)
    operations = _Operations.of(model, plan, convention)
    return {
        "size_mb": bits / 8 / convention.megabyte,
        "float.size_mb": parameters * FLOAT_BITS / 8 / convention.megabyte,
        "bops_g": convention.operations * operations.bops / 1e9,
        "float.bops_g": convention.operations * operations.macs * FLOAT_BITS**2 / 1e9,
    }


def uniform_plan(site_map: SiteMap, weights: int, activations: int) -> Plan:
    """``plan_of`` with the same bits for every weight, and the same for every activation."""
    return plan_of(site_map, lambda site: weights if site.kind.is_weight else activations)


def plan_of(site_map: SiteMap, bits: Callable[[Site], int]) -> Plan:
    """The plan that quantizes every operand of ``site_map`` at these bits: what an architecture costs, before any range
    is known. One scale a channel for weights, one a tensor for activations; the scales mean nothing.
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
    """Weights in their format with their scales, everything else (biases, norms, embeddings) in float32."""
    weights = _weights(plan)
    rest = parameters - sum(d.site.numel for d in weights)
    return sum(d.quantizer.storage_bits(d.site.shape) for d in weights) + rest * FLOAT_BITS


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
    """MACs of one image: module → (MACs, the bits of its operands), and how many belong to none of these modules."""

    known: dict[str, tuple[int, list[int]]]
    elsewhere: int

    @classmethod
    def of(cls, model: nn.Module, plan: Plan, convention: Convention) -> _Operations:
        """Those that the convention counts. Attention that was not made explicit is elsewhere, and counts always."""
        known = {module: (macs, list[int]()) for module, macs in plan.float_macs.items()}
        for decision in (d for d in plan if d.site.macs):
            known.setdefault(decision.site.module, (decision.site.macs, []))[1].append(decision.quantizer.bits)
        elsewhere = plan.total_macs - sum(macs for macs, _ in known.values())
        if not convention.attention:
            matmuls = {name for name, module in model.named_modules() if isinstance(module, MatMul)}
            known = {module: found for module, found in known.items() if module not in matmuls}
        return cls(known, elsewhere)

    @property
    def macs(self) -> int:
        return sum(macs for macs, _ in self.known.values()) + self.elsewhere

    @property
    def bops(self) -> int:
        """MACs × bits × bits; an operand without a quantizer has 32."""
        operands = ((macs, *bits, FLOAT_BITS, FLOAT_BITS) for macs, bits in self.known.values())
        return sum(macs * one * other for macs, one, other, *_ in operands) + self.elsewhere * FLOAT_BITS**2


def _mean_bits(decisions: Iterable[Decision]) -> float:
    decisions = list(decisions)
    elements = sum(d.site.numel for d in decisions)
    return sum(d.quantizer.bits * d.site.numel for d in decisions) / elements if elements else float(FLOAT_BITS)
