"""Measures of the sensitivity of each site of a model."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field
from torch import nn

from qplug.analysis.sensitivity.correlation import Correlation, correlations
from qplug.analysis.sensitivity.single import Effect, one_at_a_time, refusal
from qplug.core.component import Config, DataSource, ModelSource, Technique
from qplug.core.errors import InputError, exits_named
from qplug.core.task.choices import Choices
from qplug.core.text import listed
from qplug.core.types import Granularity, Site
from qplug.data.stream import Stream
from qplug.hooks.registry import Registry
from qplug.pipeline.assigner import QuantizerAssigner
from qplug.pipeline.context import RunContext
from qplug.pipeline.plugin_calibration import PluginCalibration
from qplug.pipeline.results import Inputs, PreparedSites
from qplug.pipeline.specs import RECIPE
from qplug.pipeline.stages.calibrate import calibrate
from qplug.pipeline.stages.load import open_inputs
from qplug.pipeline.stages.prepare import prepare
from qplug.pipeline.stages.rewrite import rewrite
from qplug.pipeline.warnings import unknown_macs
from qplug.quantization.calibration.calibrator import watched_sites
from qplug.quantization.calibration.hessian import Trace, hessian_traces
from qplug.quantization.plan import Decision
from qplug.quantization.sites import SiteMap
from qplug.recipe.schema import ActivationConfig, Bits, Override, Quantize, Scope, WeightConfig

GRADIENT_BATCH = 8
"""Images in a batch with gradients; one image of DeiT-Ti takes 0.15 GB for its second derivatives."""


class SensitivityRequest(Config):
    """Options of the measurement."""

    bits: tuple[Bits, ...] = Field((8, 6, 4), min_length=1, description="bits at which SQNR is measured")
    drop_bits: Bits | None = Field(None, description="bits of the one quantized site; default: the smallest of bits")
    scope: Scope = Scope()
    match: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="patterns over names, modules and kinds of sites; all sites if empty"
    )
    hessian_probes: int = Field(0, ge=0, description="random vectors of the Hessian trace, at most; 0 for no trace")
    backend: str = Field("brevitas", description="backend that executes the quantized operations")
    batch_size: int = Field(32, ge=1, description="evaluation images in a batch")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="seed of the choice of images and of every random step")

    @property
    def drop_at(self) -> int:
        """Bits of the one quantized site."""
        return self.drop_bits or min(self.bits)

    def quantize(self) -> Quantize:
        """These options as the ``quantize`` section of a recipe."""
        bits = self.drop_at
        return Quantize(weights=WeightConfig(bits=bits), activations=ActivationConfig(bits=bits), scope=self.scope)


@dataclass(frozen=True)
class SiteSensitivity:
    """Measures of one site.

    Attributes:
        decision: its quantizer at ``drop_at`` bits, and the technique that made it.
        sqnr_db: bits → SQNR of the site's own values, in dB.
        effect: change of the logits if only this site is quantized.
        trace: Hessian trace of the weight, if requested.
        perturbation: ‖ΔW‖² at ``drop_at`` bits; NaN for activations.
    """

    decision: Decision
    sqnr_db: dict[int, float]
    effect: Effect
    trace: Trace | None = None
    perturbation: float = float("nan")

    @property
    def site(self) -> Site:
        """The measured site."""
        return self.decision.site

    def values(self) -> dict[str, float]:
        """Name of each measure → its value: first the cheap measures, then the two that they predict."""
        values = {f"sqnr_db.{bits}": value for bits, value in self.sqnr_db.items()}
        if self.trace is not None:
            values["hessian.trace"] = self.trace.value
            values["hessian.per_parameter"] = self.trace.per_parameter
            values["hessian.hawq"] = self.trace.per_parameter * self.perturbation
        return values | {"drop": self.effect.drop, "logit_sqnr_db": self.effect.logit_sqnr_db}


@dataclass
class Sensitivity:
    """Result of the measurement.

    Attributes:
        model: name of the model.
        fingerprint: SHA-256 of its weights.
        request: options of the measurement.
        ranges: techniques that made the quantizers, in their order.
        images: number of ``calibration`` and ``evaluation`` images.
        sites: measures of each site, in model order.
        correlations: correlations between the measures, for ``weights`` and for ``activations`` if there are any.
        seconds: time of each stage.
        warnings: one sentence each.
    """

    model: str
    fingerprint: str
    request: SensitivityRequest
    ranges: list[str]
    images: dict[str, int]
    sites: list[SiteSensitivity]
    correlations: dict[str, list[Correlation]]
    seconds: dict[str, float]
    warnings: list[str] = field(default_factory=list)


@exits_named
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
    """Measure the sensitivity of every site of a model.

    Args:
        model_source: source of the model.
        calibration: images for statistics, quantizers and the Hessian.
        evaluation: images for the logits, none of them in ``calibration``; labels are not used.
        ranges: techniques that make quantizers; the first that accepts a site makes its quantizer.
        request: options of the measurement.
        device: device as torch names it.
        registry: installed components, by default all.
        observers: objects with ``qplug_observe``.

    Raises:
        InputError: an argument cannot be used, or no technique accepts a site.
        PluginError: a technique raised, or returned a forbidden value.
    """
    with RunContext.of(ranges, request.backend, request.seed, device, registry, observers) as ctx:
        return _measure(ctx, model_source, calibration, evaluation, request)


def _measure(
    ctx: RunContext, source: ModelSource, calibration: DataSource, evaluation: DataSource, request: SensitivityRequest
) -> Sensitivity:
    with ctx.stage("load"):
        inputs = open_inputs(
            ctx, source, calibration, evaluation, batch_size=GRADIENT_BATCH, evaluation_seed=request.seed
        )
    assert inputs.evaluation is not None
    rewritten = rewrite(ctx, inputs, ask=False)
    sites = prepare(ctx, rewritten, request.quantize(), functools.partial(selected_sites, request=request))
    statistics = calibrate(ctx, inputs, rewritten, sites, "kl")
    model = rewritten.module
    PluginCalibration(ctx.caller, model, inputs.images, sites.asked).run_rest()

    quantizers = QuantizerAssigner(ctx.caller, statistics, sites.specs, sites.watched, ctx.results)
    decisions, refused = _decisions(ctx, quantizers, sites, model)
    sqnr_db = _sqnr(ctx, quantizers, decisions, request)
    effects = _effects(ctx, inputs, model, decisions, request)
    traces = _traces(ctx, inputs, model, decisions, request)
    measures = [
        SiteSensitivity(decision, sqnr_db[name], effects[name], traces.get(name), _perturbation(quantizers, decision))
        for name, decision in decisions.items()
    ]
    float_model = inputs.float_model
    return Sensitivity(
        model=float_model.name,
        fingerprint=float_model.fingerprint,
        request=request,
        ranges=[technique.name() for technique in ctx.caller.techniques],
        images={"calibration": len(inputs.images.examples), "evaluation": len(inputs.evaluation)},
        sites=measures,
        correlations=rank_correlations(measures),
        seconds={**ctx.clock.seconds, "total": ctx.clock.total},
        warnings=[
            *ctx.warnings,
            *_warnings(float_model.note, sites.site_map, refused),
            *sites.folding.note(),
            *ctx.caller.idle(),
        ],
    )


def _decisions(
    ctx: RunContext, quantizers: QuantizerAssigner, sites: PreparedSites, model: nn.Module
) -> tuple[dict[str, Decision], dict[str, str]]:
    """Decisions of the sites that the backend can execute; the other sites with the reason."""
    with ctx.stage("ranges", len(sites.watched)) as advance:
        decisions = quantizers.decide(RECIPE, {}, advance)
        reasons = {name: refusal(model, ctx.backend, decision) for name, decision in decisions.items()}
    refused = {name: reason for name, reason in reasons.items() if reason is not None}
    return {name: decision for name, decision in decisions.items() if name not in refused}, refused


def _sqnr(
    ctx: RunContext, quantizers: QuantizerAssigner, decisions: Mapping[str, Decision], request: SensitivityRequest
) -> dict[str, dict[int, float]]:
    """Site → bits → SQNR of its values, in dB."""
    with ctx.stage("sqnr", len(decisions)) as advance:
        sqnr_db: dict[str, dict[int, float]] = {}
        for name, decision in decisions.items():
            sqnr_db[name] = {bits: quantizers.sqnr_db(decision.site, bits) for bits in request.bits}
            advance(len(sqnr_db))
    return sqnr_db


def _effects(
    ctx: RunContext, inputs: Inputs, model: nn.Module, decisions: Mapping[str, Decision], request: SensitivityRequest
) -> dict[str, Effect]:
    """Site → change of the logits if only this site is quantized."""
    images = inputs.evaluation
    assert images is not None
    with ctx.stage("drop", len(decisions) * -(-len(images) // request.batch_size)) as advance:
        batches = Stream(images, inputs.float_model.preprocessing, request.batch_size, ctx.device).once()
        return one_at_a_time(model, ctx.backend, decisions.values(), batches, advance, inputs.float_model.task)


def _traces(
    ctx: RunContext, inputs: Inputs, model: nn.Module, decisions: Mapping[str, Decision], request: SensitivityRequest
) -> dict[str, Trace]:
    """Weight → its Hessian trace; empty if no trace is requested."""
    weights = [name for name, decision in decisions.items() if decision.site.kind.is_weight]
    if not request.hessian_probes or not weights:
        return {}
    task = inputs.float_model.task
    if not isinstance(task, Choices):
        raise InputError(
            f"the Hessian is that of the cross-entropy of classes, which the task {task.name} does not have",
            where="hessian_probes",
            fix="leave out --hessian",
        )
    probes, seed = request.hessian_probes, request.seed
    with ctx.stage("hessian", probes) as advance:
        return hessian_traces(model, weights, inputs.images, probes=probes, seed=seed, advance=advance)


def selected_sites(sites: Sequence[Site], request: SensitivityRequest) -> list[Site]:
    """The sites in scope that match a pattern; raises ``InputError`` for a pattern without a match."""
    in_scope = watched_sites(sites, request.scope.softmax, request.scope.layernorm)
    patterns = [Override(match=pattern, skip=True) for pattern in request.match]
    for pattern in patterns:
        if not any(pattern.matches(site) for site in in_scope):
            out_of_scope = any(pattern.matches(site) for site in sites)
            raise InputError(
                f"{pattern.match!r} matches only inputs of Softmax and LayerNorm, which are out of scope"
                if out_of_scope
                else f"{pattern.match!r} matches no site of this model",
                where="--match",
                fix="add --softmax or --layernorm"
                if out_of_scope
                else "qplug inspect MODEL lists the sites and their kinds",
            )
    return [site for site in in_scope if not patterns or any(pattern.matches(site) for pattern in patterns)]


def rank_correlations(measured: Sequence[SiteSensitivity]) -> dict[str, list[Correlation]]:
    """Rank correlations over weights, and over activations."""
    by_group: dict[str, list[Correlation]] = {}
    for group, is_weight in (("weights", True), ("activations", False)):
        rows = [site.values() for site in measured if site.site.kind.is_weight is is_weight]
        if rows:
            by_group[group] = correlations({name: [row[name] for row in rows] for name in rows[0]})
    return by_group


def _perturbation(quantizers: QuantizerAssigner, decision: Decision) -> float:
    if not decision.site.kind.is_weight:
        return float("nan")
    stats = quantizers.stats(decision.site)
    quantizer = decision.quantizer.to(stats.sample.device)
    return float(stats.value_error(quantizer.infer(stats.sample), Granularity.PER_TENSOR))


def _warnings(note: str, site_map: SiteMap, refused: Mapping[str, str]) -> list[str]:
    warnings = [note] if note else []
    uncovered = site_map.uncovered_macs
    if uncovered:
        share = sum(uncovered.values()) / site_map.total_macs
        warnings.append(f"{share:.1%} of the MACs have no site and were not measured: {listed(uncovered)}")
    warnings += unknown_macs(site_map.unknown)
    return warnings + [f"{name} was not measured: {reason}" for name, reason in refused.items()]
