"""Allocate bits to sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from qplug.core.errors import InputError, PluginError
from qplug.core.types import Advance, BackendOffer
from qplug.pipeline.assigner import QuantizerAssigner
from qplug.pipeline.context import RunContext
from qplug.pipeline.results import BitAllocation, PreparedSites, RewrittenModel
from qplug.pipeline.specs import RECIPE
from qplug.quantization.accounting import convention
from qplug.quantization.costs import costs
from qplug.quantization.plan import Plan
from qplug.quantization.sqnr_table import SqnrTable

if TYPE_CHECKING:
    from qplug.hooks.caller import TechniqueCaller
    from qplug.quantization.sites import SiteMap


def allocate(
    ctx: RunContext, model: RewrittenModel, sites: PreparedSites, quantizers: QuantizerAssigner
) -> BitAllocation:
    """The bits that a technique chooses, or the recipe's if none does."""
    free = sum(site.name not in quantizers.specs.fixed for site in quantizers.sites)
    with ctx.stage("bits", free if ctx.caller.implements("qplug_allocate_bits") else 0) as advance:
        return allocate_bits(ctx.caller, quantizers, model.module, sites.site_map, ctx.offer, advance)


def allocate_bits(
    caller: TechniqueCaller,
    quantizers: QuantizerAssigner,
    model: nn.Module,
    site_map: SiteMap,
    offer: BackendOffer,
    advance: Advance = lambda done, note="": None,
) -> BitAllocation:
    """Ask the techniques for bits. The table that they see lists no site whose bits an override fixes.

    Args:
        caller: the techniques.
        quantizers: makes the quantizers whose errors and costs the table gives.
        model: the float model, smoothed, on which costs are counted.
        site_map: all its sites.
        offer: of the recipe's backend.
        advance: told the number of sites that were measured.

    Raises:
        PluginError: bits outside 2 … 16, or of a site that the table does not list.
        InputError: bits that the backend does not have.
    """
    if not caller.implements("qplug_allocate_bits"):
        return BitAllocation(RECIPE)
    free = [site for site in quantizers.sites if site.name not in quantizers.specs.fixed]
    specs = {site.name: quantizers.specs[site.name] for site in free}

    def count(bits: Mapping[str, int], accounting: str) -> dict[str, float]:
        decisions = quantizers.decide(RECIPE, bits, lambda _: None)
        plan = Plan(decisions, float_macs=site_map.float_macs(decisions), total_macs=site_map.total_macs)
        return costs(model, plan, convention(accounting))

    table = SqnrTable(free, specs, quantizers.sqnr_db, quantizers.stats, count, advance)
    answer = caller.first("qplug_allocate_bits", table=table)
    if answer is None:
        return BitAllocation(RECIPE, table=table)
    technique, bits = answer
    known = {site.name for site in free}
    wrong = {name: b for name, b in bits.items() if name not in known or not isinstance(b, int) or not 2 <= b <= 16}
    if wrong:
        name, value = next(iter(wrong.items()))
        raise PluginError(
            f"expected sites of the table with 2 … 16 bits, received {len(wrong)} others, such as {name}: {value!r}",
            where=caller.where(technique, "qplug_allocate_bits"),
        )
    beyond = {name: b for name, b in bits.items() if not offer.has(b)}
    if beyond:
        name, value = next(iter(beyond.items()))
        raise InputError(
            "expected bits of the recipe's backend, {} to {}, ".format(*offer.bits)
            + f"received others for {len(beyond)} sites, for example {name}: {value}",
            where=caller.where(technique, "qplug_allocate_bits"),
            fix="configure the technique for bits that the backend has, or change the backend",
        )
    return BitAllocation(technique.name(), bits, table)
