"""The analyses, as one straight line: a model, what became of it, and the figures of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from qplug.analysis.ranges.activations import Range, activation_ranges
from qplug.analysis.ranges.mixing import CHANNELS, TOKENS, Mixing, mixers, mixing_traces
from qplug.analysis.ranges.subjects import as_it_is, of_run, rewritten
from qplug.analysis.sensitivity.measure import SLICE
from qplug.core.component import Config, DataSource, ModelSource
from qplug.core.types import Change
from qplug.hooks.registry import Registry
from qplug.pipeline.context import RunContext
from qplug.pipeline.stages.load import open_inputs
from qplug.quantization.calibration.calibrator import watched_sites
from qplug.quantization.calibration.hessian import TRACE_TOLERANCE

Patterns = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class RangesRequest(Config):
    """What to look at."""

    ranges: bool = Field(True, description="whether to measure the ranges of activations")
    hessian_probes: int = Field(0, ge=0, description="probes of the Hessian trace, at most; 0 leaves it out")
    token_mixing: Patterns = Field(TOKENS, description="patterns of the operations that mix tokens")
    channel_mixing: Patterns = Field(CHANNELS, description="patterns of the operations that mix channels")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of the choice of images and of everything random")


@dataclass
class Look:
    """One model.

    Attributes:
        origin: its name, or the recipe or run folder that made it.
        changes: what was rewritten, smoothed and folded.
        ranges: of its activations, where asked.
        mixing: Hessian traces of its mixers, where asked.
    """

    origin: str
    changes: list[Change]
    ranges: list[Range] = field(default_factory=list)
    mixing: list[Mixing] = field(default_factory=list)


@dataclass
class RangeAnalysis:
    """What was found out.

    Attributes:
        model: its name; ``fingerprint``: SHA-256 of its weights.
        request: what was asked.
        images: how many were shown.
        looks: ``before``, and where a rewriting was named ``after``.
        seconds: by stage.
        warnings: one sentence each.
    """

    model: str
    fingerprint: str
    request: RangesRequest
    images: int
    looks: dict[str, Look]
    seconds: dict[str, float]
    warnings: list[str] = field(default_factory=list)


def analyze(
    model_source: ModelSource,
    images: DataSource,
    request: RangesRequest,
    *,
    after: Path | None = None,
    device: str = "cpu",
    registry: Registry | None = None,
    observers: Sequence[object] = (),
) -> RangeAnalysis:
    """Look at a model, and at what became of it.

    Args:
        model_source: where the model comes from.
        images: real ones; labels are not used.
        request: what to look at.
        after: a recipe whose rewrites the model gets, without training, or a run folder of one rewritten and trained.
        device: as torch names it.
        registry: what is installed, unless given.
        observers: objects with ``qplug_observe``.

    Raises:
        InputError: something named cannot be used.
        EquivalenceError: a rewrite that promised to preserve the function did not.
    """
    with RunContext.of(seed=request.seed, device=device, registry=registry, observers=observers) as ctx:
        return _analyze(ctx, model_source, images, request, after)


def _analyze(
    ctx: RunContext, model_source: ModelSource, images: DataSource, request: RangesRequest, after: Path | None
) -> RangeAnalysis:
    with ctx.stage("load"):
        inputs = open_inputs(ctx, model_source, images, batch_size=SLICE)
    stream, source = inputs.images, inputs.float_model

    subjects = {"before": as_it_is(ctx, inputs)}
    if after is not None and after.is_dir():
        subjects["after"] = of_run(source, after, subjects["before"].image, ctx.registry)
    elif after is not None:
        subjects["after"] = rewritten(ctx, inputs, after)

    looks = {name: Look(subject.origin, subject.changes) for name, subject in subjects.items()}
    groups = {
        name: mixers(one.model, one.site_map.sites, one.depth, request.token_mixing, request.channel_mixing)
        for name, one in subjects.items()
        if request.hessian_probes
    }
    for name, subject in subjects.items() if request.ranges else ():
        with ctx.stage(f"ranges {name}", len(stream.examples)) as advance:
            sites = watched_sites(subject.site_map.sites, softmax=False, layernorm=False)
            looks[name].ranges = activation_ranges(
                subject.model, sites, subject.depth, stream, len(stream.examples), seed=request.seed, advance=advance
            )
    for name, found in groups.items():
        with ctx.stage(f"hessian {name}", request.hessian_probes) as advance:
            subject = subjects[name]
            looks[name].mixing = mixing_traces(
                subject.model,
                found,
                subject.depth,
                stream,
                probes=request.hessian_probes,
                seed=request.seed,
                advance=advance,
            )
    return RangeAnalysis(
        model=source.name,
        fingerprint=source.fingerprint,
        request=request,
        images=len(stream.examples),
        looks=looks,
        seconds={**ctx.clock.seconds, "total": ctx.clock.total},
        warnings=[*(note for subject in subjects.values() for note in subject.notes), *_unsettled(looks, request)],
    )


def _unsettled(looks: dict[str, Look], request: RangesRequest) -> list[str]:
    """Where the limit ended an estimate, and not its stop."""
    return [
        f"the Hessian traces {name} have not settled to {TRACE_TOLERANCE:g} after {request.hessian_probes} probes; see "
        "their standard errors, or raise --hessian-probes"
        for name, look in looks.items()
        if any(one.trace.probes == request.hessian_probes for one in look.mixing)
    ]
