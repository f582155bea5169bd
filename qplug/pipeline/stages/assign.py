"""Assign a quantizer to each site: the plan."""

from __future__ import annotations

from qplug.core.types import OUT_OF_SCOPE
from qplug.pipeline.assigner import QuantizerAssigner
from qplug.pipeline.context import RunContext
from qplug.pipeline.results import BitAllocation, PreparedSites, RewrittenModel
from qplug.quantization.plan import Plan


def assign(
    ctx: RunContext, model: RewrittenModel, sites: PreparedSites, quantizers: QuantizerAssigner, bits: BitAllocation
) -> Plan:
    """The decision for every site, and the reason for every site that stays in float."""
    with ctx.stage("ranges", len(quantizers.sites)) as advance:
        plan = Plan(quantizers.decide(bits.by, bits.bits, advance), model.changes)
        watched = set(sites.watched)
        outside = {site.name: OUT_OF_SCOPE for site in sites.site_map.sites if site not in watched}
        plan.float_sites = {**sites.specs.skipped, **outside, **sites.site_map.left, **sites.folding.left}
        plan.total_macs, plan.float_macs = sites.site_map.total_macs, sites.site_map.float_macs(plan.decisions)
        plan.unknown, plan.calls = sites.site_map.unknown, {name: sites.calls[name] for name in plan.modules()}
    return plan
