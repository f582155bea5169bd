"""Sites of a model, operations without a site, and costs at common bits."""

from __future__ import annotations

from dataclasses import dataclass, field

from qplug.core.component import ModelSource
from qplug.core.errors import exits_named
from qplug.core.types import Site
from qplug.hooks.registry import Registry
from qplug.hooks.tasks import settle_task
from qplug.pipeline.check_model import settle_inputs
from qplug.pipeline.context import RunContext
from qplug.pipeline.results import Inputs
from qplug.pipeline.stages.prepare import prepare
from qplug.pipeline.stages.rewrite import rewrite
from qplug.quantization.accounting import CONVENTIONS
from qplug.quantization.costs import costs, uniform_plan

COST_BITS = ((8, 8), (4, 8), (4, 4))
"""Bits of weights and activations at which costs are counted."""


@dataclass
class Inspection:
    """Parts of a model that can be quantized.

    Attributes:
        sites: all sites, inputs of Softmax and LayerNorm included.
        total_macs: multiply-accumulates of one image.
        float_macs: module → multiply-accumulates without a site.
        float_reasons: module without a site → the reason, where one is known.
        float_norms: BatchNorms that could not be folded → the reason.
        unknown: module → operators, or its weights, whose multiply-accumulates no formula counts.
        bypassed: site → why its quantizer would be passed by; it counts as float.
        costs: convention → bits such as ``W8A8`` → size and bit operations if every site is quantized, with the names
            of a run's metrics.
        notes: how the model is called and read, where that is not plain, one sentence each.
    """

    sites: list[Site]
    total_macs: int
    float_macs: dict[str, int]
    float_reasons: dict[str, str] = field(default_factory=dict)
    float_norms: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    bypassed: dict[str, str] = field(default_factory=dict)
    costs: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def coverage(self) -> float | None:
        """Share of the multiply-accumulates that have a site for both operands; ``None`` if it is unknown."""
        if self.unknown:
            return None
        return 1.0 - sum(self.float_macs.values()) / self.total_macs if self.total_macs else 0.0


@exits_named
def inspect(model_source: ModelSource, registry: Registry | None = None, *, weights: bool = True) -> Inspection:
    """Load a model, make its attention explicit, fold its BatchNorms, list its sites and count its costs.

    Args:
        model_source: source of the model.
        registry: installed components, by default all.
        weights: whether its weights are loaded; without them it is built alone, as from a run folder.

    Raises:
        InputError: the model cannot be loaded or called, or its outputs are not those of its task.
    """
    with RunContext.of(registry=registry) as ctx:
        source = settle_task(model_source.load() if weights else model_source.architecture(), ctx.registry)
        notes = settle_inputs(source)
        model = rewrite(ctx, Inputs(source), ask=False)
        sites = prepare(ctx, model)
    site_map = sites.site_map.without(sites.refused)
    plans = {f"W{weights}A{inputs}": uniform_plan(site_map, weights, inputs) for weights, inputs in COST_BITS}
    counted = {
        name: {bits: costs(model.module, plan, convention, source.module) for bits, plan in plans.items()}
        for name, convention in CONVENTIONS.items()
    }
    return Inspection(
        site_map.sites,
        site_map.total_macs,
        site_map.float_macs({site.name for site in site_map.sites} - site_map.bypassed.keys()),
        {**site_map.left, **sites.refused, **model.unread},
        sites.folding.left,
        site_map.unknown,
        site_map.bypassed,
        counted,
        notes,
    )
