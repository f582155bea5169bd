"""The run, as one straight line: each line is a stage, in ``qplug/pipeline/stages``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qplug.core.errors import exits_named
from qplug.core.storage.cache import Cache
from qplug.hooks.registry import Registry
from qplug.pipeline.assigner import QuantizerAssigner
from qplug.pipeline.context import RunContext
from qplug.pipeline.results import Inputs, RunResult
from qplug.pipeline.stages.allocate import allocate
from qplug.pipeline.stages.assign import assign
from qplug.pipeline.stages.calibrate import calibrate
from qplug.pipeline.stages.evaluate import evaluate
from qplug.pipeline.stages.finetune import finetune
from qplug.pipeline.stages.load import load
from qplug.pipeline.stages.prepare import prepare
from qplug.pipeline.stages.reconstruct import reconstruct
from qplug.pipeline.stages.rewrite import rewrite
from qplug.pipeline.stages.save import save
from qplug.pipeline.stages.smooth import smooth
from qplug.pipeline.stages.train import train
from qplug.recipe import Recipe


@exits_named
def run(
    recipe: Recipe,
    *,
    out: Path | None = None,
    device: str = "cpu",
    registry: Registry | None = None,
    observers: Sequence[object] = (),
    cache: Cache | None = None,
) -> RunResult:
    """Quantize and measure by ``recipe``.

    Several launched processes share the batches of what is trained, and the first one writes.

    Args:
        recipe: from ``load_recipe``.
        out: the run folder to write; ``None`` writes nothing.
        device: as torch names it.
        registry: what is installed, unless given.
        observers: objects with ``qplug_observe``.
        cache: keeps statistics, float outputs, quantizers and trainings for other runs; ``None`` keeps nothing.

    Raises:
        InputError: something that the recipe names cannot be used; nothing is written.
        PluginError: a technique raised, or answered what it may not.
        EquivalenceError: a step that promised to preserve the function did not.
    """
    with RunContext.open(recipe, out, device, registry, observers, cache) as ctx:
        return run_stages(ctx, recipe, load(ctx, recipe))


def run_stages(ctx: RunContext, recipe: Recipe, inputs: Inputs) -> RunResult:
    """Every stage behind ``load``, in order."""
    model = rewrite(ctx, inputs)
    finetune(ctx, inputs, model, recipe.finetune)
    sites = prepare(ctx, model, recipe.quantize)
    statistics = calibrate(ctx, inputs, model, sites, recipe.calibration.loss)
    smooth(ctx, inputs, model, sites, statistics)
    quantizers = QuantizerAssigner(ctx.caller, statistics, sites.specs, sites.watched, ctx.results)
    bits = allocate(ctx, model, sites, quantizers)
    plan = assign(ctx, model, sites, quantizers, bits)
    reconstruct(ctx, inputs, model, plan, recipe.calibration.loss)
    train(ctx, inputs, model, plan, recipe.qat)
    evaluation = evaluate(ctx, inputs, model, plan)
    return save(ctx, recipe, inputs, model, sites, bits, plan, evaluation)
