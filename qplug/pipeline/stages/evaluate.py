"""Evaluate: lower the model by its plan, and measure it beside the float model."""

from __future__ import annotations

import copy
import math

import torch

from qplug.core.device import forward_seconds, peak_memory_mb
from qplug.core.examples import LabelTransform, describe_labels
from qplug.core.storage.hashing import images_digest
from qplug.core.text import Alarm
from qplug.data.loading import batches
from qplug.hooks.metrics import measure
from qplug.pipeline.answers import Outputs, answers_of
from qplug.pipeline.bank import settled_task
from qplug.pipeline.context import RunContext
from qplug.pipeline.result_cache import source_key
from qplug.pipeline.results import Evaluation, Inputs, RewrittenModel
from qplug.pipeline.warnings import chance_warning
from qplug.quantization.accounting import CONVENTIONS, DEFAULT
from qplug.quantization.calls import check_one_forward, checked_calls
from qplug.quantization.costs import account
from qplug.quantization.plan import Plan

ON_CALIBRATION = "agreement_on_calibration"
"""Name of the score of a run in memory without held-out data."""
CHECKED = "the quantized model"


def evaluate(ctx: RunContext, inputs: Inputs, model: RewrittenModel, plan: Plan) -> Evaluation:
    """The quantized model and its measurements; those of answers only where there is evaluation data.

    Raises:
        InputError: a forward calls a quantized module less often than calibration did.
    """
    with ctx.stage("quantize"):
        quantized = ctx.backend.apply(copy.deepcopy(model.module), plan).eval()
        check_one_forward(quantized, plan, model.example, CHECKED)
    found = Evaluation(quantized)
    if inputs.evaluation is not None:
        _judge(ctx, inputs, model, plan, found)
    elif inputs.in_memory and inputs.own is None:
        _compare_on_calibration(ctx, inputs, found)
    if inputs.own is not None:
        with ctx.stage("evaluate"), ctx.backend.inference(quantized):
            found.metrics |= inputs.own.metrics(quantized, found.metrics)
    found.metrics |= {
        **account(model.module, plan, inputs.float_model.module),
        **{key: value for history in model.trainings.values() for key, value in history.metrics().items()},
        "images.evaluation": len(inputs.evaluation) if inputs.evaluation is not None else 0,
        "bops_convention": str(CONVENTIONS[DEFAULT]),
        "images.calibration": len(inputs.images.examples),
        "peak_memory_mb": peak_memory_mb(ctx.device),
    }
    return found


def _compare_on_calibration(ctx: RunContext, inputs: Inputs, found: Evaluation) -> None:
    """What can be said without held-out data: how near the outputs are to the float model's on calibration data."""
    source, agree, signal, noise = inputs.float_model, 0, 0.0, 0.0
    with ctx.stage("evaluation", len(inputs.images)) as advance, ctx.backend.inference(found.model), torch.no_grad():
        for done, x in enumerate(inputs.images, start=1):
            float_, quantized = source.module(x).float().cpu(), found.model(x).float().cpu()
            agree += source.task.agreement(float_, quantized)
            energies = [float(energy.sum()) for energy in source.task.energies(float_, quantized)]
            signal, noise = signal + energies[0], noise + energies[1]
            advance(done)
    found.metrics |= {
        "score": ON_CALIBRATION,
        "score_title": "agreement on calibration data",
        f"float.{ON_CALIBRATION}": 1.0,
        f"quantized.{ON_CALIBRATION}": agree / len(inputs.images.examples),
        "calibration.sqnr_db": 10 * math.log10(signal / noise) if noise and signal else math.inf,
    }
    ctx.warnings.append(
        "no evaluate= and no evaluation= were given: the model was compared on its calibration data alone"
    )


def _judge(ctx: RunContext, inputs: Inputs, model: RewrittenModel, plan: Plan, found: Evaluation) -> None:
    """Every model's answer to every example; the float model's may come from the cache."""
    examples, source = inputs.evaluation, inputs.float_model
    assert examples is not None
    with ctx.stage("evaluation", len(examples)) as advance, ctx.backend.inference(found.model):
        digest = images_digest(examples)
        slot = ctx.results.slot("outputs", lambda: {"model": source_key(source), "images": digest})
        models = [found.model] if slot.tensors else [found.model, source.module]
        models += [model.finetuned] if model.finetuned is not None else []
        transform = source.preprocessing.transform()  # its own, to know which evaluation examples it shortened
        task = source.task
        stream = batches(examples, transform, inputs.batch_size, ctx.device, task.collect, task.missing)
        with checked_calls(found.model, plan, CHECKED):
            answers, labels = answers_of(models, stream, advance, task)
        if slot.tensors is None:
            slot.keep({"outputs": answers[1].outputs}, answers[1].seconds)
        float_ = slot.tensors["outputs"] if slot.tensors else answers[1].outputs
        found.outputs = outputs = Outputs(float_, answers[0].outputs, labels)
        source.own_task = task = settled_task(ctx, inputs, found.model, labels)
        chance = task.chance(float_, labels)
        ctx.warnings += chance_warning(chance, task.causes) if chance is not None else []
        timed, batch = len(inputs.images.examples), inputs.images.first(inputs.batch_size)
        seconds = [forward_seconds(one, batch) * timed / len(batch) for one in (source.module, found.model)]
    found.metrics |= task.metrics(outputs.float_, outputs.quantized, labels)
    score = task.score
    found.metrics |= {"score": score, "score_title": task.score_title}
    values, warnings = measure(ctx.registry, ctx.seed, outputs.float_, outputs.quantized, labels)
    found.metrics |= values
    ctx.warnings += warnings
    if model.finetuned is not None:
        found.metrics[f"finetuned.{score}"] = task.judge(answers[-1].outputs, labels)
    if chance is not None:
        found.metrics["float.chance"] = chance.expected
    else:
        ctx.warnings += map(Alarm, task.doubts(found.metrics[f"float.{score}"]))
    found.metrics["images.evaluation"] = len(examples)
    found.metrics["images.evaluation_labels"] = describe_labels(examples, labels)
    found.metrics["float.forward_seconds"], found.metrics["quantized.forward_seconds"] = seconds
    if isinstance(transform, LabelTransform):
        ctx.warnings += [f"evaluation data: {loss}" for loss in transform.losses()]
