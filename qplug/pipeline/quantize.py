"""``quantize``: the run, on a model and data in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from qplug.core.errors import InputError, exits_named
from qplug.core.storage.cache import Cache
from qplug.core.task import CLASSIFICATION, Task
from qplug.data.loading import check_disjoint
from qplug.data.memory import AsItIs, TensorExamples
from qplug.data.stream import Stream
from qplug.hooks.registry import Registry
from qplug.hooks.tasks import task_named
from qplug.models.effective_weight import copy_module
from qplug.models.float_model import FloatModel
from qplug.pipeline.check_labels import check_labels
from qplug.pipeline.check_model import check_gradients, check_model
from qplug.pipeline.context import RunContext
from qplug.pipeline.results import Inputs, RunResult
from qplug.pipeline.run import run_stages
from qplug.recipe import Recipe, load_recipe


@exits_named
def quantize(
    model: nn.Module,
    calibration: Iterable[Any],
    recipe: Recipe | str | Path,
    *,
    evaluation: Iterable[Any] | None = None,
    task: Task | str = CLASSIFICATION,
    device: str = "cpu",
    registry: Registry | None = None,
    observers: Sequence[object] = (),
    cache: Cache | None = None,
) -> RunResult:
    """Quantize ``model`` by ``recipe``, whose model and data play no part; ``model`` stays as it is.

    Args:
        model: a float model that takes a batch (B, …) and returns outputs of ``task``.
        calibration: batches of inputs, or of inputs and labels, as a ``DataLoader`` yields them.
        recipe: a recipe, or the path of one.
        evaluation: batches of inputs and labels; without them, metrics of outputs are left out.
        task: what the outputs are: a task, or the name of one that is installed.
        device: as torch names it.
        registry, observers, cache: as ``run`` takes them.

    Returns:
        The result of the run, with the quantized module as ``model``; no run folder is written.

    Raises:
        InputError: the recipe trains, there is no calibration data, or evaluation shares an example with it.
        RecipeError, PluginError, EquivalenceError: as ``load_recipe`` and ``run``.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, registry=registry, allow_code=True)  # its model is not loaded
    if recipe.finetune is not None or recipe.qat is not None:
        stage = "finetune" if recipe.finetune is not None else "qat"
        raise InputError(
            "expected a recipe without training: no labelled training data is in memory",
            where=f"{stage} of {recipe.name or 'the recipe'}",
            fix="leave the section out, or use qplug.run with data.training",
        )
    images = TensorExamples(calibration, "calibration")
    judged = TensorExamples(evaluation, "evaluation") if evaluation is not None else None
    if judged is not None:
        check_disjoint(images, judged)
    with RunContext.open(recipe, None, device, registry, observers, cache) as ctx:
        task = task_named(task, ctx.registry) if isinstance(task, str) else task
        own = _copied(model)
        float_model = FloatModel.of(own, type(model).__name__, AsItIs.of(images), task=task)
        float_model.module.to(ctx.device)
        stream = Stream(images, float_model.preprocessing, recipe.data.batch_size, ctx.device)
        outputs = check_model(float_model, stream)
        ctx.warnings += check_labels(float_model, outputs, {"evaluation": judged})
        check_gradients(ctx, recipe, float_model, stream)
        return run_stages(ctx, recipe, Inputs(float_model, own, stream, judged, outputs=outputs))


def _copied(model: nn.Module) -> nn.Module:
    """A copy of the caller's model; raises ``InputError`` if it cannot be copied."""
    try:
        return copy_module(model)
    except Exception as error:  # the model's own code, and tensors that autograd recorded
        raise InputError(
            f"the model cannot be copied: {type(error).__name__}: {' '.join(str(error).split())[:160]}",
            where=type(model).__name__,
            fix="make copy.deepcopy(model) work; for torch.nn.utils.weight_norm, run model.eval() once within "
            "torch.no_grad(), or call torch.nn.utils.remove_weight_norm",
        ) from error
