"""What of a plan's numbers is not said by the bits and the granularity of a recipe, in words, for protocols."""

from __future__ import annotations

from qplug.hooks.registry import Registry
from qplug.quantization.plan import Decision, Plan

BLOCKS = "scales in blocks"
DYNAMIC = "dynamic ranges"


def number_words(plan: Plan, registry: Registry) -> dict[str, str]:
    """``weights`` and ``activations`` → number formats of plugins, scales in blocks, dynamic ranges; left out if none.

    Args:
        plan: of a run.
        registry: tells which plugin offers a kind of quantizer; qplug's own kinds are not named.
    """
    words: dict[str, set[str]] = {}
    for decision in plan:
        side = "weights" if decision.site.kind.is_weight else "activations"
        words.setdefault(side, set()).update(_words(decision, registry))
    return {side: ", ".join(sorted(found)) for side, found in words.items() if found}


def _words(decision: Decision, registry: Registry) -> set[str]:
    quantizer, site = decision.quantizer, decision.site
    owner = registry.owners.get(f"quantizer:{quantizer.kind}")
    foreign = owner is not None and owner.distribution != "qplug"
    if not foreign and quantizer.kind != "uniform":
        return set()
    scales = [len_ for name, len_ in _sizes(decision) if foreign or name == "scale"]
    found = {quantizer.kind} if foreign else set()
    if site.kind.is_weight and max(scales, default=0) > site.shape[site.channel_axis]:
        found.add(BLOCKS)
    if foreign and not site.kind.is_weight and not scales:
        found.add(DYNAMIC)
    return found


def _sizes(decision: Decision) -> list[tuple[str, int]]:
    """Names and numbers of elements of the tensors of floats that a quantizer holds."""
    return [(n, b.numel()) for n, b in decision.quantizer.named_buffers() if b.is_floating_point()]
