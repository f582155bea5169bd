"""Check in seconds, before any other work, that a float model can be quantized and measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qplug.core.errors import InputError
from qplug.core.task import Task
from qplug.core.text import listed
from qplug.data.stream import Stream
from qplug.models.diagnosis import (
    calls_of,
    first_difference,
    first_not_finite,
    is_operation,
    named,
    run_forward,
)
from qplug.models.float_model import FloatModel
from qplug.models.interface import settle_interface
from qplug.pipeline.context import RunContext
from qplug.quantization.calibration.gradients import no_gradient, traced, traced_operations
from qplug.recipe import Recipe
from qplug.recipe.schema import CalibrationConfig

REPEATED = 1e-4
"""Largest difference of the outputs for the same batch, as a fraction of their norm."""
ALONE = 1e-3
"""Largest difference of an image's outputs alone and in a batch, as a fraction of their norm."""


def check_model(source: FloatModel, stream: Stream) -> tuple[int, ...]:
    """Check the model of a run on its first two calibration images, in five forwards.

    The model gets the interface of ``settle_interface``; what that does is added to the note of ``source``.

    Returns:
        The shape of one image's outputs, such as (1000,).

    Raises:
        InputError: the model fails, its outputs are not those of its task or not finite, it computes in another type
            than float32, or it gives an image other outputs a second time, or in another batch.
    """
    pair = stream.first(min(2, stream.batch_size))
    evaluated = [(path, part) for path, part in source.module.named_modules() if not part.training]
    with torch.random.fork_rng(devices=[]):  # a model that draws numbers must not change those of the run
        notes = settle_interface(source.module, pair[:1], source.task, source.name)
        _check_training_mode(source, [path for path, part in evaluated if part.training and not [*part.children()]])
        shape = _check_outputs(source, pair)
    if (
        getattr(source.module, "num_classes", None) == 0 and source.task.name == "classification"
    ):  # timm's name for a model without a classifier
        notes.append(f"the model has no classifier (num_classes: 0): its {shape[-1]} outputs are features, not classes")
    source.note = "; ".join(note for note in (source.note, *notes) if note)
    _check_whole(source)
    return shape


def settle_inputs(source: FloatModel, device: torch.device | str = "cpu") -> list[str]:
    """The interface alone, on a random input, where no data is; returns notes on what it does.

    Raises:
        InputError: the model fails, or its outputs are not those of its task.
    """
    example = source.preprocessing.example().to(device)
    return settle_interface(source.module, example, source.task, source.name)


def free_bytes() -> int:
    """Memory that programs can still take, in bytes."""
    import psutil

    return int(psutil.virtual_memory().available)


def check_memory(shape: Sequence[int], examples: int) -> None:
    """Refuse evaluation data whose outputs, (``shape``) float32 for each example and model, exceed the free memory."""
    one, free = 2 * 4 * math.prod(shape), free_bytes()
    if one * examples > free:
        raise InputError(
            f"the outputs of both models for {examples} evaluation examples take {one * examples / 1e9:.1f} GB of "
            f"memory, and {free / 1e9:.1f} GB are free",
            where="data.evaluation",
            fix=f"set the number of evaluation examples to at most {max(1, free // (2 * one))}",
        )


def check_loss(recipe: Recipe, task: Task) -> list[str]:
    """A sentence where the default loss is replaced by the task's own.

    Raises:
        InputError: ``calibration.loss`` is not one of the task.
    """
    loss = recipe.calibration.loss
    if loss in (*task.losses, "none"):
        return []
    if loss != CalibrationConfig().loss:
        raise InputError(
            f"expected a loss of the task {task.name}, {' or '.join(task.losses)}, received '{loss}'",
            where="calibration.loss",
            fix=f"set calibration.loss to {task.losses[0]}, or leave it out",
        )
    return [f"calibration.loss {loss} is that of classes; the task {task.name} takes {task.own_loss(loss)}"]


def _check_whole(source: FloatModel) -> None:
    """Refuse a preparation that cuts images, for a task whose outputs are resized to the whole image."""
    if source.task.whole_image and not getattr(source.preprocessing, "whole_image", True):
        raise InputError(
            f"the preparation of images cuts a part out of them, and {source.task.name} needs the whole image",
            where=f"{source.name}, preprocessing",
            fix="set crop_mode: squash and crop_pct: 1.0 in model.preprocessing",
        )


def check_gradients(ctx: RunContext, recipe: Recipe, source: FloatModel, stream: Stream) -> None:
    """Check in one forward that outputs have gradients where the recipe needs them.

    A part without gradients is no error: the calibration names it, and counts its outputs alike.

    Raises:
        InputError: calibration, fine-tuning or QAT needs gradients, and no output depends on an operation with one.
    """
    trained = [name for name in ("finetune", "qat") if getattr(recipe, name) is not None]
    loss = recipe.calibration.loss
    weighted = [one.name() for one in ctx.caller.techniques if one.gradients and loss != "none"]
    if not trained and not weighted:
        return
    operations = [module for module in source.module.modules() if is_operation(module)]
    with traced_operations(source.module, operations):
        if source.module(traced(stream.first(1))).requires_grad:
            return
    if trained:
        fix = "remove it from the forward, or leave the training out of the recipe"
        raise no_gradient(f"{' and '.join(trained)} trains by gradients", trained[0], fix)
    raise no_gradient(f"{listed(weighted)} weighs errors by the gradient of calibration.loss {loss}")


def _check_outputs(source: FloatModel, pair: Tensor) -> tuple[int, ...]:
    """The shape of one image's outputs."""
    module, name = source.module, source.name
    with torch.no_grad():
        given = pair.clone()
        first: Tensor = run_forward(module, given, name)
        if not torch.equal(given, pair):
            raise _changes_input(name)
        if len(first) != len(pair):
            raise _fixed_batch(len(first), len(pair), name)
        if not bool(torch.isfinite(first).all()):
            raise _not_finite(module, pair, name)
        again: Tensor = module(pair)
        if not source.task.relative_change(first, again) <= REPEATED:
            raise _differs(module, pair, name)
        alone: Tensor = module(pair[:1])
        if not source.task.relative_change(alone, first[:1]) <= ALONE:
            raise _depends_on_batch(module, pair, name)
    return tuple(first.shape[1:])


def _check_training_mode(source: FloatModel, training: list[str]) -> None:
    """Refuse a model whose forward changed the modules ``training`` from eval mode to training mode."""
    if training:
        places = listed(named(source.module, path) for path in training)
        raise InputError(
            f"the model's forward sets {places} to training mode, so that an image's outputs depend on chance or on "
            "the other images of its batch",
            where=source.name,
            fix="remove .train() from the model's forward: qplug quantizes models in eval mode",
        )


def _changes_input(name: str) -> InputError:
    return InputError(
        "the model's forward changes the images that it gets in place, so that a second forward gets other images",
        where=name,
        fix="replace operations such as x.sub_(mean) and x -= mean by x = x - mean",
    )


def _fixed_batch(rows: int, batch: int, name: str) -> InputError:
    return InputError(
        f"the model returns {rows} rows for a batch of {batch}: a batch size seems to be written into it",
        where=name,
        fix="write the batch size as x.shape[0] in the model's forward",
    )


def _not_finite(module: nn.Module, batch: Tensor, name: str) -> InputError:
    place = first_not_finite(module, calls_of(module, batch))
    return InputError(
        f"the model's outputs are NaN or infinite on calibration images; the first such values come from {place}",
        where=name,
        fix="check that the weights and the preprocessing belong to this model, and that it does not overflow float32",
    )


def _differs(module: nn.Module, batch: Tensor, name: str) -> InputError:
    place = first_difference(module, calls_of(module, batch), calls_of(module, batch))
    return InputError(
        f"the model answers differently to the same images: the first difference for the same input is in {place}",
        where=name,
        fix="remove what is random in eval mode, such as F.dropout(x, p) without training=self.training, and what one "
        "forward remembers for the next",
    )


def _depends_on_batch(module: nn.Module, pair: Tensor, name: str) -> InputError:
    place = first_difference(module, calls_of(module, pair[:1]), calls_of(module, pair))
    return InputError(
        f"an image's outputs depend on the other images of its batch: the first difference is in {place}",
        where=name,
        fix="let the model normalize by running statistics, or over the axes of one image only",
    )
