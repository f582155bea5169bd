"""Prepare the model for quantization: fold BatchNorms, find sites, and resolve what the recipe asks of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qplug.core.types import Site
from qplug.models.batchnorm import fold_batchnorms
from qplug.pipeline.context import RunContext
from qplug.pipeline.results import PreparedSites, RewrittenModel
from qplug.pipeline.specs import Specs, resolve
from qplug.quantization.calibration.calibrator import watched_sites
from qplug.quantization.calls import refuse_bypassed
from qplug.quantization.sites import find_sites
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
        InputError: an override matches no site, or the model computes past a quantizer that the recipe asks for.
    """
    with ctx.stage("sites"):
        folding = fold_batchnorms(model.module, model.example)
        if model.equivalence is not None:
            model.equivalence.check(folding.changes)
        model.changes += folding.changes
        site_map = find_sites(model.module, model.example)
        if quantize is None:
            return PreparedSites(site_map, Specs(), [], folding, dict(site_map.calls))
        scope = quantize.scope
        watched = watch(site_map.sites) if watch else watched_sites(site_map.sites, scope.softmax, scope.layernorm)
        sites = PreparedSites(site_map, resolve(quantize, site_map.sites), watched, folding, dict(site_map.calls))
        refuse_bypassed(site_map.bypassed, sites.asked)
        return sites
