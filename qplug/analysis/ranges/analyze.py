"""Activation ranges and Hessian traces of a model, and of the same model after a rewrite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from qplug.analysis.ranges.activations import ActivationRange, activation_ranges
from qplug.analysis.ranges.mixing import CHANNELS, TOKENS, MixerTrace, mixers, mixing_traces
from qplug.analysis.ranges.models import AnalyzedModel, original_model, rewritten_model, run_model
from qplug.analysis.sensitivity.measure import GRADIENT_BATCH
from qplug.core.component import Config, DataSource, ModelSource
from qplug.core.errors import exits_named
from qplug.core.types import Change
from qplug.hooks.registry import Registry
from qplug.pipeline.context import RunContext
from qplug.pipeline.results import Inputs
from qplug.pipeline.stages.load import open_inputs
from qplug.quantization.calibration.calibrator import watched_sites
from qplug.quantization.calibration.hessian import TRACE_TOLERANCE
from qplug.recipe import AllowCode

Patterns = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class RangesRequest(Config):
    """Options of the analysis."""

    ranges: bool = Field(True, description="whether to measure the ranges of activations")
    hessian_probes: int = Field(0, ge=0, description="random vectors of the Hessian trace, at most; 0 for no trace")
    token_mixing: Patterns = Field(TOKENS, description="patterns of the operations that mix tokens")
    channel_mixing: Patterns = Field(CHANNELS, description="patterns of the operations that mix channels")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="seed of the choice of images and of every random step")


@dataclass
class ModelAnalysis:
    """Figures of one model.

    Attributes:
        label: name of the model, or path of the recipe or run folder that produced it.
        changes: rewrites, smoothings and folded BatchNorms.
        ranges: activation ranges, if requested.
        mixing: Hessian traces of the mixers, if requested.
    """

    label: str
    changes: list[Change]
    ranges: list[ActivationRange] = field(default_factory=list)
    mixing: list[MixerTrace] = field(default_factory=list)


@dataclass
class RangeAnalysis:
    """Result of the analysis.

    Attributes:
        model: name of the model.
        fingerprint: SHA-256 of its weights.
        request: options of the analysis.
        images: number of images.
        models: ``before``, and ``after`` if a rewrite was given.
        seconds: time of each stage.
        warnings: one sentence each.
    """

    model: str
    fingerprint: str
    request: RangesRequest
    images: int
    models: dict[str, ModelAnalysis]
    seconds: dict[str, float]
    warnings: list[str] = field(default_factory=list)


@exits_named
def analyze(
    model_source: ModelSource,
    images: DataSource,
    request: RangesRequest,
    *,
    after: Path | None = None,
    device: str = "cpu",
    registry: Registry | None = None,
    observers: Sequence[object] = (),
    allow_code: AllowCode = False,
) -> RangeAnalysis:
    """Analyze a model, and the same model after a rewrite.

    Args:
        model_source: source of the model.
        images: real images; labels are not used.
        request: options of the analysis.
        after: a recipe, whose rewrites are applied without training, or the run folder of a rewritten, trained model.
        device: device as torch names it.
        registry: installed components, by default all.
        observers: objects with ``qplug_observe``.
        allow_code: whether the recipe of a run folder may name code from outside the installed packages.

    Raises:
        InputError: an argument cannot be used.
        EquivalenceError: a rewrite broke its promise to preserve the function.
    """
    with RunContext.of(seed=request.seed, device=device, registry=registry, observers=observers) as ctx:
        return _analyze(ctx, model_source, images, request, after, allow_code)


def _analyze(
    ctx: RunContext,
    model_source: ModelSource,
    images: DataSource,
    request: RangesRequest,
    after: Path | None,
    allow_code: AllowCode,
) -> RangeAnalysis:
    with ctx.stage("load"):
        inputs = open_inputs(ctx, model_source, images, batch_size=GRADIENT_BATCH)
    models = _models(ctx, inputs, after, allow_code)
    results = {name: ModelAnalysis(model.label, model.changes) for name, model in models.items()}
    if request.hessian_probes:
        groups = {
            name: mixers(model.model, model.site_map.sites, model.depth, request.token_mixing, request.channel_mixing)
            for name, model in models.items()
        }
    for name, model in models.items() if request.ranges else ():
        results[name].ranges = _ranges(ctx, inputs, name, model, request)
    for name, model in models.items() if request.hessian_probes else ():
        with ctx.stage(f"hessian {name}", request.hessian_probes) as advance:
            probes, seed = request.hessian_probes, request.seed
            results[name].mixing = mixing_traces(
                model.model, groups[name], model.depth, inputs.images, probes=probes, seed=seed, advance=advance
            )
    return RangeAnalysis(
        model=inputs.float_model.name,
        fingerprint=inputs.float_model.fingerprint,
        request=request,
        images=len(inputs.images.examples),
        models=results,
        seconds={**ctx.clock.seconds, "total": ctx.clock.total},
        warnings=[*(text for model in models.values() for text in model.warnings), *_unsettled(results, request)],
    )


def _models(ctx: RunContext, inputs: Inputs, after: Path | None, allow_code: AllowCode) -> dict[str, AnalyzedModel]:
    """``before``, and ``after`` if a recipe or a run folder is given."""
    models = {"before": original_model(ctx, inputs)}
    if after is not None and after.is_dir():
        models["after"] = run_model(inputs.float_model, after, models["before"].image, ctx.registry, allow_code)
    elif after is not None:
        models["after"] = rewritten_model(ctx, inputs, after)
    return models


def _ranges(
    ctx: RunContext, inputs: Inputs, name: str, model: AnalyzedModel, request: RangesRequest
) -> list[ActivationRange]:
    """Ranges of all activation sites, except inputs of Softmax and LayerNorm."""
    count = len(inputs.images.examples)
    with ctx.stage(f"ranges {name}", count) as advance:
        sites = watched_sites(model.site_map.sites, softmax=False, layernorm=False)
        return activation_ranges(
            model.model, sites, model.depth, inputs.images, count, seed=request.seed, advance=advance
        )


def _unsettled(models: dict[str, ModelAnalysis], request: RangesRequest) -> list[str]:
    """Warnings for trace estimates that used all probes without settling."""
    limit = request.hessian_probes
    return [
        f"the Hessian traces{f' {name}' if len(models) > 1 else ''} have not settled to {TRACE_TOLERANCE:g} "
        f"after {limit} probes; raise --hessian-probes, or consider their standard errors"
        for name, model in models.items()
        if any(mixer.trace.probes == limit for mixer in model.mixing)
    ]
