"""Load the float model and open its data."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from qplug.core.component import DataSource, ModelSource
from qplug.core.errors import InputError
from qplug.core.examples import notes_of
from qplug.core.task import Features
from qplug.data.loading import check_disjoint
from qplug.data.stream import Stream
from qplug.hooks.registry import component
from qplug.hooks.tasks import settle_task
from qplug.pipeline.check_labels import check_labels
from qplug.pipeline.check_model import check_gradients, check_loss, check_memory, check_model
from qplug.pipeline.context import RunContext
from qplug.pipeline.results import Inputs
from qplug.pipeline.run_key import EVALUATION_SEED, run_key_if_known
from qplug.recipe import Recipe


def load(ctx: RunContext, recipe: Recipe) -> Inputs:
    """What the recipe names: its model, and its calibration, evaluation and training data.

    Raises:
        InputError: something cannot be loaded, or two sets of data share an example.
    """
    data = recipe.data
    training = component(ctx.registry.datasets, data.training) if data.training is not None else None
    model = component(ctx.registry.models, recipe.model)
    with ctx.stage("load"):
        before = _key(model) if ctx.out is not None else None
        inputs = open_inputs(
            ctx,
            model,
            component(ctx.registry.datasets, data.calibration),
            component(ctx.registry.datasets, data.evaluation),
            training,
            batch_size=data.batch_size,
            labels=True,
            trains=recipe.finetune is not None or recipe.qat is not None,
        )
        ctx.warnings += check_loss(recipe, inputs.float_model.task)
        check_gradients(ctx, recipe, inputs.float_model, inputs.images)
        # The whole key reads every image, so it comes behind the checks. No weights may have changed since.
        if before is not None and before == _key(model):
            inputs.run_key = run_key_if_known(recipe, ctx.registry, str(ctx.device))
    return inputs


def _key(model: ModelSource) -> dict[str, Any] | None:
    """The key of a model; ``None`` if it has none."""
    with suppress(InputError):
        return model.key()
    return None


def open_inputs(
    ctx: RunContext,
    model: ModelSource,
    calibration: DataSource,
    evaluation: DataSource | None = None,
    training: DataSource | None = None,
    *,
    batch_size: int,
    evaluation_seed: int = EVALUATION_SEED,
    labels: bool = False,
    trains: bool = True,
) -> Inputs:
    """The same for components. The evaluation data of a run does not depend on its seed.

    ``labels`` tells whether labels will be used: those of evaluation and training are then checked at once. Where
    nothing is trained (not ``trains``), training data is the bank of nearest neighbours, for features alone.

    Raises:
        InputError: as ``load``.
    """
    float_model = settle_task(model.load(), ctx.registry)
    files = model.files() if ctx.out is not None else {}
    images = calibration.open(ctx.seed)
    judged = evaluation.open(evaluation_seed) if evaluation is not None else None
    if training is not None and not trains and not isinstance(float_model.task, Features):
        ctx.warnings.append("data.training is given, and the recipe trains nothing: neither finetune nor qat")
        training = None
    trained = training.open(ctx.seed) if training is not None else None
    float_model.module.to(ctx.device)
    stream = Stream(images, float_model.preprocessing, batch_size, ctx.device)
    outputs = check_model(float_model, stream)
    if judged is not None:
        check_memory(outputs, len(judged))
    ctx.warnings += notes_of(images)
    if labels:
        ctx.warnings += check_labels(float_model, outputs, {"data.evaluation": judged, "data.training": trained})
    if judged is not None:
        check_disjoint(images, judged)
        if trained is not None:
            check_disjoint(trained, judged, "training")
    return Inputs(float_model, model, stream, judged, trained, files, outputs=outputs)
