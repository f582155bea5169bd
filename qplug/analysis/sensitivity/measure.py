"""``qplug sensitivity``, as one straight line: a model, its sites, and what each measure says of each."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from qplug.analysis.sensitivity.correlation import Correlation, correlations
from qplug.analysis.sensitivity.single import Effect, one_at_a_time, refusal
from qplug.core.component import Config, DataSource, ModelSource, Technique
from qplug.core.errors import InputError
from qplug.core.types import Granularity, Site
from qplug.data.stream import Stream
from qplug.hooks.registry import Registry
from qplug.pipeline.assigner import QuantizerAssigner
from qplug.pipeline.context import RunContext
from qplug.pipeline.plugin_calibration import PluginCalibration
from qplug.pipeline.specs import RECIPE
from qplug.pipeline.stages.calibrate import calibrate
from qplug.pipeline.stages.load import open_inputs
from qplug.pipeline.stages.prepare import prepare
from qplug.pipeline.stages.rewrite import rewrite
from qplug.quantization.calibration.calibrator import watched_sites
from qplug.quantization.calibration.hessian import Trace, hessian_traces
from qplug.quantization.plan import Decision
from qplug.quantization.sites import SiteMap
from qplug.recipe.schema import ActivationConfig, Bits, Override, Quantize, Scope, WeightConfig

SLICE = 8
"""Images at a time where gradients are taken: one of DeiT-Ti takes 0.15 GB for its second derivatives."""


class SensitivityRequest(Config):
    """What to measure, of which sites."""

    bits: tuple[Bits, ...] = Field((8, 6, 4), min_length=1, description="widths at which SQNR is measured")
    drop_bits: Bits | None = Field(None, description="width of the one quantized site; the smallest of bits if unset")
    scope: Scope = Scope()
    match: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="patterns over names, modules and kinds of sites; all if empty"
    )
    hessian_probes: int = Field(0, ge=0, description="probes of the Hessian trace, at most; 0 leaves it out")
    backend: str = Field("brevitas", description="what executes the quantized operations")
    batch_size: int = Field(32, ge=1, description="evaluation images at a time")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of the choice of images and of everything random")

    @property
    def drop_at(self) -> int:
        """Bits of the one quantized site."""
        return self.drop_bits or min(self.bits)

    def quantize(self) -> Quantize:
        """The ``quantize`` section of a recipe that asks for this."""
        bits = self.drop_at
        return Quantize(weights=WeightConfig(bits=bits), activations=ActivationConfig(bits=bits), scope=self.scope)


@dataclass(frozen=True)
class Measured:
    """One site.

    Attributes:
        decision: its quantizer at the width of the drop, and who chose it.
        sqnr_db: bits → SQNR of the site's own values, in dB.
        effect: what it alone, quantized, does to the logits.
        trace: of the weight's Hessian, where asked.
        perturbation: ‖ΔW‖² at the width of the drop; NaN for activations.
    """

    decision: Decision
    sqnr_db: dict[int, float]
    effect: Effect
    trace: Trace | None = None
    perturbation: float = float("nan")

    @property
    def site(self) -> Site:
        """The site."""
        return self.decision.site

    def values(self) -> dict[str, float]:
        """Every measure by its name: the cheap ones, and at the end what they are to predict."""
        values = {f"sqnr_db.{bits}": value for bits, value in self.sqnr_db.items()}
        if self.trace is not None:
            values["hessian.trace"] = self.trace.value
            values["hessian.per_parameter"] = self.trace.per_parameter
            values["hessian.hawq"] = self.trace.per_parameter * self.perturbation
        return values | {"drop": self.effect.drop, "logit_sqnr_db": self.effect.logit_sqnr_db}


@dataclass
class Sensitivity:
    """What was found out.

    Attributes:
        model: its name; ``fingerprint``: SHA-256 of its weights.
        request: what was asked.
        ranges: the techniques that estimated ranges, in the order in which they were asked.
        images: numbers of ``calibration`` and ``evaluation`` images.
        sites: in model order.
        correlations: of the measures, for ``weights`` and ``activations`` where there are any.
        seconds: by stage.
        warnings: one sentence each.
    """

    model: str
    fingerprint: str
    request: SensitivityRequest
    ranges: list[str]
    images: dict[str, int]
    sites: list[Measured]
    correlations: dict[str, list[Correlation]]
    seconds: dict[str, float]
    warnings: list[str] = field(default_factory=list)


def measure(
    model_source: ModelSource,
    calibration: DataSource,
    evaluation: DataSource,
    ranges: Sequence[Technique],
    request: SensitivityRequest,
    *,
    device: str = "cpu",
    registry: Registry | None = None,
    observers: Sequence[object] = (),
) -> Sensitivity:
    """Measure every site of a model.

    Args:
        model_source: where the model comes from.
        calibration: images for statistics, ranges and the Hessian.
        evaluation: images for the logits, none of them in ``calibration``; labels are not used.
        ranges: techniques that estimate ranges; the first that takes a site has it.
        request: what to measure.
        device: as torch names it.
        registry: what is installed, unless given.
        observers: objects with ``qplug_observe``.

    Raises:
        InputError: something named cannot be used, or no technique takes a site.
        PluginError: a technique raised, or answered what it may not.
    """
    with RunContext.of(ranges, request.backend, request.seed, device, registry, observers) as ctx:
        return _measure(ctx, model_source, calibration, evaluation, request)


def _measure(
    ctx: RunContext, source: ModelSource, calibration: DataSource, evaluation: DataSource, request: SensitivityRequest
) -> Sensitivity:
    with ctx.stage("load"):
        inputs = open_inputs(ctx, source, calibration, evaluation, batch_size=SLICE, evaluation_seed=request.seed)
    judged, stream = inputs.evaluation, inputs.images
    assert judged is not None
    rewritten = rewrite(ctx, inputs, ask=False)
    sites = prepare(ctx, rewritten, request.quantize(), functools.partial(chosen, request=request))
    statistics = calibrate(ctx, inputs, rewritten, sites, "kl")
    model = rewritten.module
    PluginCalibration(ctx.caller, model, stream, sites.asked).run_rest()

    with ctx.stage("ranges", len(sites.watched)) as advance:
        quantizers = QuantizerAssigner(ctx.caller, statistics, sites.specs, sites.watched, ctx.results)
        decisions = quantizers.decide(RECIPE, {}, advance)
        reasons = {name: refusal(model, ctx.backend, decision) for name, decision in decisions.items()}
        decisions = {name: decision for name, decision in decisions.items() if reasons[name] is None}

    with ctx.stage("sqnr", len(decisions)) as advance:
        sqnr_db: dict[str, dict[int, float]] = {}
        for name, decision in decisions.items():
            sqnr_db[name] = {bits: quantizers.sqnr_db(decision.site, bits) for bits in request.bits}
            advance(len(sqnr_db))

    with ctx.stage("drop", len(decisions) * -(-len(judged) // request.batch_size)) as advance:
        batched = Stream(judged, inputs.float_model.preprocessing, request.batch_size, ctx.device).once()
        effects = one_at_a_time(model, ctx.backend, decisions.values(), batched, advance, inputs.float_model.task)

    traces: dict[str, Trace] = {}
    weights = [name for name, decision in decisions.items() if decision.site.kind.is_weight]
    if request.hessian_probes and weights:
        with ctx.stage("hessian", request.hessian_probes) as advance:
            traces = hessian_traces(
                model, weights, stream, probes=request.hessian_probes, seed=request.seed, advance=advance
            )

    measured = [
        Measured(decision, sqnr_db[name], effects[name], traces.get(name), _perturbation(quantizers, decision))
        for name, decision in decisions.items()
    ]
    return Sensitivity(
        model=inputs.float_model.name,
        fingerprint=inputs.float_model.fingerprint,
        request=request,
        ranges=[technique.name() for technique in ctx.caller.techniques],
        images={"calibration": len(stream.examples), "evaluation": len(judged)},
        sites=measured,
        correlations=correlated(measured),
        seconds={**ctx.clock.seconds, "total": ctx.clock.total},
        warnings=[*_notes(inputs.float_model.note, sites.site_map, reasons), *sites.folding.note(), *ctx.caller.idle()],
    )


def chosen(sites: Sequence[Site], request: SensitivityRequest) -> list[Site]:
    """The sites in scope that a pattern of the request matches; raises ``InputError`` for one that matches none."""
    inside = watched_sites(sites, request.scope.softmax, request.scope.layernorm)
    patterns = [Override(match=pattern, skip=True) for pattern in request.match]
    for pattern in patterns:
        if not any(pattern.matches(site) for site in inside):
            outside = any(pattern.matches(site) for site in sites)
            raise InputError(
                f"{pattern.match!r} matches only inputs of Softmax and LayerNorm, which are out of scope"
                if outside
                else f"{pattern.match!r} matches no site of this model",
                where="--match",
                fix="add --softmax or --layernorm"
                if outside
                else "qplug inspect MODEL lists the sites and their kinds",
            )
    return [site for site in inside if not patterns or any(pattern.matches(site) for pattern in patterns)]


def correlated(measured: Sequence[Measured]) -> dict[str, list[Correlation]]:
    """The rank correlations over weights, and over activations."""
    found: dict[str, list[Correlation]] = {}
    for group, wanted in (("weights", True), ("activations", False)):
        rows = [one.values() for one in measured if one.site.kind.is_weight is wanted]
        if rows:
            found[group] = correlations({name: [row[name] for row in rows] for name in rows[0]})
    return found


def _perturbation(quantizers: QuantizerAssigner, decision: Decision) -> float:
    if not decision.site.kind.is_weight:
        return float("nan")
    stats = quantizers.stats(decision.site)
    quantizer = decision.quantizer.to(stats.sample.device)
    return float(stats.value_error(quantizer.infer(stats.sample), Granularity.PER_TENSOR))


def _notes(note: str, site_map: SiteMap, reasons: Mapping[str, str | None]) -> list[str]:
    notes = [note] if note else []
    uncovered = site_map.uncovered_macs
    if uncovered:
        share = sum(uncovered.values()) / site_map.total_macs
        notes.append(f"{share:.1%} of the MACs have no site and were not measured: {', '.join(list(uncovered)[:3])}")
    return notes + [f"{name} was not measured: {reason}" for name, reason in reasons.items() if reason]
