"""Size, bit operations and mean bits of a plan, by a named convention."""

from __future__ import annotations

from torch import nn

from qplug.plan import Decision, Plan

BOPS_CONVENTION = "full: MACs × bits × bits, attention's matmuls included, operands in float at 32 bits"
FLOAT_BITS = 32
MB = 1e6


def account(model: nn.Module, plan: Plan) -> dict[str, float]:
    """Costs of ``plan`` on ``model`` (the float model, after rewrites and smoothing).

    Returns:
        ``size_mb``: weights in their format with their scales, everything else (biases, norms, embeddings) in float32,
        10^6 bytes to the MB; ``float.size_mb``: all of it in float32; ``bops_g``: 10^9 bit operations of one image;
        ``bits.weights_mean`` and ``bits.activations_mean``: over the elements of quantised sites; ``coverage.macs``.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    weights = [d for d in plan if d.site.kind.is_weight]
    activations = [d for d in plan if not d.site.kind.is_weight]
    stored = sum(d.quantizer.storage_bits(d.site.shape) for d in weights)
    rest = parameters - sum(d.site.numel for d in weights)
    return {
        "size_mb": (stored + rest * FLOAT_BITS) / 8 / MB,
        "float.size_mb": parameters * FLOAT_BITS / 8 / MB,
        "bops_g": _bops(plan) / 1e9,
        "float.bops_g": plan.total_macs * FLOAT_BITS**2 / 1e9,
        "bits.weights_mean": _mean_bits(weights),
        "bits.activations_mean": _mean_bits(activations),
        "coverage.macs": plan.coverage,
    }


def _bops(plan: Plan) -> float:
    operations: dict[str, list[Decision]] = {}
    for decision in plan:
        if decision.site.macs:
            operations.setdefault(decision.site.module, []).append(decision)
    total = counted = 0
    for decisions in operations.values():
        macs = decisions[0].site.macs
        bits = [d.quantizer.bits for d in decisions] + [FLOAT_BITS] * (2 - len(decisions))
        total += macs * bits[0] * bits[1]
        counted += macs
    return total + (plan.total_macs - counted) * FLOAT_BITS**2


def _mean_bits(decisions: list[Decision]) -> float:
    elements = sum(d.site.numel for d in decisions)
    return sum(d.quantizer.bits * d.site.numel for d in decisions) / elements if elements else float(FLOAT_BITS)
