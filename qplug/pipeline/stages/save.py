"""Save: complete the metrics and warnings of a run, and write its folder."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from qplug.core.examples import classes_of
from qplug.core.storage.hashing import images_digest
from qplug.core.storage.run_folder import RunFolder
from qplug.hooks.registry import Registry
from qplug.pipeline.context import RunContext
from qplug.pipeline.number_words import number_words
from qplug.pipeline.proof import proof
from qplug.pipeline.results import BitAllocation, Evaluation, Inputs, PreparedSites, RewrittenModel, RunResult
from qplug.pipeline.run_key import lock, run_key_if_known
from qplug.pipeline.warnings import model_warnings
from qplug.pipeline.weights import write_weights
from qplug.quantization.plan import Plan
from qplug.recipe import Recipe


def save(
    ctx: RunContext,
    recipe: Recipe,
    inputs: Inputs,
    model: RewrittenModel,
    sites: PreparedSites,
    bits: BitAllocation,
    plan: Plan,
    evaluation: Evaluation,
) -> RunResult:
    """The result of the run, which is written to ``ctx.out``; the folder appears complete or not at all."""
    metrics: dict[str, Any] = {
        **evaluation.metrics,
        "bits.by": bits.by,
        **{f"seconds.{stage}": seconds for stage, seconds in ctx.clock.seconds.items()},
        "seconds.total": ctx.clock.total,
        "cache.seconds_saved": ctx.clock.saved,
        **{f"cache.seconds_saved.{stage}": seconds for stage, seconds in ctx.clock.saved_by_stage.items()},
    }
    if ctx.out is not None and inputs.run_key != run_key_if_known(recipe, ctx.registry, str(ctx.device)):
        inputs.run_key = None
        ctx.warnings.append("weights, images or code changed during the run, so it answers for no other run")
    cache = ctx.results.cache
    ctx.warnings += [*ctx.caller.idle(), *ctx.caller.notes(), *model_warnings(inputs.float_model, plan)]
    ctx.warnings += [*sites.folding.note(), *(cache.warnings if cache else [])]
    table = bits.table.measured() if bits.table else {}
    result = RunResult(
        recipe, metrics, plan, table, ctx.warnings, model.trainings, folder=ctx.out, model=evaluation.model
    )
    if inputs.in_memory:
        result.inputs = inputs
        result.write = functools.partial(_write, ctx.registry, str(ctx.device), result, inputs, model, evaluation)
    if ctx.out is not None:
        _write(ctx.registry, str(ctx.device), result, inputs, model, evaluation, ctx.out)
    return result


def _write(
    registry: Registry,
    device: str,
    result: RunResult,
    inputs: Inputs,
    model: RewrittenModel,
    evaluation: Evaluation,
    out: Path,
) -> None:
    with RunFolder(out) as folder:
        for name, text in inputs.files.items():
            folder.write_text(name, text)
        left = write_weights(folder, model.module, result.plan)  # first: metrics.json holds the warnings
        result.warnings += [warning for warning in left if warning not in result.warnings]  # it may be written again
        folder.write_text("recipe.yaml", result.recipe.yaml())
        folder.write_lock(
            lock(
                result.recipe,
                run_key=inputs.run_key,
                device=device,
                hashes=_hashes(inputs),
                registry=registry,
                kinds=sorted({decision.quantizer.kind for decision in result.plan}),
            )
            | {"labels": _labels(inputs), "numbers": number_words(result.plan, registry)},
        )
        folder.write_json("plan.json", result.plan.to_dict())
        folder.write_json("metrics.json", {**result.metrics, "warnings": result.warnings})
        if result.sensitivity:
            folder.write_json("sensitivity.json", result.sensitivity)
        if result.trainings:
            folder.write_json("training.json", {n: history.to_dict() for n, history in result.trainings.items()})
        if evaluation.outputs is not None:
            found, task = evaluation.outputs, inputs.float_model.task
            examples = task.by_example(found.float_, found.quantized, found.labels)
            proofs = {**proof("float", found.float_), **proof("quantized", found.quantized)}
            folder.write_tensors("evaluation.safetensors", {**examples, **proofs})
        elif inputs.in_memory:
            folder.write_tensors("evaluation.safetensors", {"quantized.by_example": torch.zeros(0)})


def _hashes(inputs: Inputs) -> dict[str, Any]:
    """SHA-256 of the model, of each calibration image, and of the other data as a whole."""
    images = inputs.images.examples
    sets = {"evaluation_images": inputs.evaluation, "training_images": inputs.training}
    return {
        "model": inputs.float_model.fingerprint,
        "evaluation_images": "",
        "calibration_images": [images.digest(index) for index in range(len(images))],
        **{name: images_digest(examples) for name, examples in sets.items() if examples is not None},
    }


def _labels(inputs: Inputs) -> dict[str, Any]:
    """The label of each class, and what gives it, of the data sets that have classes."""
    sets = {"evaluation": inputs.evaluation, "training": inputs.training}
    found = {name: classes_of(examples) for name, examples in sets.items() if examples is not None}
    return {name: {"by": one.by, "classes": dict(one.labels)} for name, one in found.items() if one is not None}
