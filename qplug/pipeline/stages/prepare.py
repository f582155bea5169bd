"""Prepare the model for quantization: fold BatchNorms, find sites, and resolve what the recipe asks of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from qplug.core.errors import InputError
from qplug.core.types import Site
from qplug.models.batchnorm import fold_batchnorms
from qplug.pipeline.context import RunContext
from qplug.pipeline.results import PreparedSites, RewrittenModel
from qplug.pipeline.specs import Specs, resolve
from qplug.quantization.backends import Backend
from qplug.quantization.calibration.calibrator import watched_sites
from qplug.quantization.calls import refuse_bypassed
from qplug.quantization.sites import SiteMap, find_sites
from qplug.recipe import Quantize

Watch = Callable[[Sequence[Site]], list[Site]]


def prepare(
    ctx: RunContext, model: RewrittenModel, quantize: Quantize | None = None, watch: Watch | None = None
) -> PreparedSites:
    """The sites of the model, whose BatchNorms are folded in place; those that a rewrite brought have statistics now.

    Args:
        ctx: of the run.
        model: rewritten.
        quantize: what the recipe asks; ``None`` asks nothing.
        watch: chooses the sites in scope; by default those of ``quantize.scope``.

    Raises:
        EquivalenceError: folding moved the outputs.
        InputError: an override matches no site; or the recipe quantizes layers that its backend cannot hold; or the
            model computes past a quantizer that the recipe asks for.
    """
    with ctx.stage("sites"):
        folding = fold_batchnorms(model.module, model.example)
        if model.equivalence is not None:
            model.equivalence.check(folding.changes)
        model.changes += folding.changes
        site_map = find_sites(model.module, model.example)
        refused = _refused(ctx.backend, model.module, site_map)
        if quantize is None:
            return PreparedSites(site_map, Specs(), [], folding, dict(site_map.calls), refused)
        scope = quantize.scope
        watched = watch(site_map.sites) if watch else watched_sites(site_map.sites, scope.softmax, scope.layernorm)
        sites = PreparedSites(
            site_map, resolve(quantize, site_map.sites), watched, folding, dict(site_map.calls), refused
        )
        refuse_bypassed(site_map.bypassed, sites.asked)
        if watch is None:  # an analysis measures what it can
            _check_refused(sites)
        return sites


def _refused(backend: Backend, model: nn.Module, site_map: SiteMap) -> dict[str, str]:
    """Module with sites → the reason why ``backend`` cannot hold it; nothing of a backend that does not say."""
    ask = getattr(backend, "refusals", None)
    return ask(model, [site.module for site in site_map.sites]) if ask is not None else {}


def _check_refused(sites: PreparedSites) -> None:
    """Raises ``InputError`` with every layer that the recipe quantizes and the backend cannot hold."""
    asked = {site.module for site in sites.watched if site.name in sites.specs}
    refused = {name: reason for name, reason in sites.refused.items() if name in asked}
    if not refused:
        return
    by_reason: dict[str, list[str]] = {}
    for name, reason in refused.items():
        by_reason.setdefault(reason, []).append(name)
    skips = ", ".join(f"{{match: '{name}', skip: true}}" for name in refused)
    raise InputError(
        "; ".join(f"{reason}: {', '.join(names)}" for reason, names in by_reason.items()),
        where=f"{len(refused)} layers" if len(refused) > 1 else next(iter(refused)),
        fix=f"leave them in float, in front of other overrides: quantize.overrides: [{skips}]; "
        "or offer an adapter that makes plain layers of them (qplug_adapters)",
    )
