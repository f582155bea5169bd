"""``quantize``: the run, on a model and data in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qplug.core.errors import InputError, exits_named
from qplug.core.storage.cache import Cache
from qplug.core.task import CLASSIFICATION, Task
from qplug.core.text import listed
from qplug.data.image_lists import ListedImages
from qplug.data.loading import check_disjoint
from qplug.data.memory import Keywords, TensorExamples
from qplug.data.stream import Stream
from qplug.hooks.registry import Registry, installed
from qplug.hooks.tasks import settle_task, task_named
from qplug.models.detector_interface import canvas_of, is_torchvision_detector
from qplug.models.in_memory import MemoryModel, as_given
from qplug.models.interface import accepted, described, floating_tensors
from qplug.pipeline.check_labels import check_labels
from qplug.pipeline.check_model import check_gradients, check_loss, check_model
from qplug.pipeline.context import RunContext
from qplug.pipeline.own_metrics import OwnMetrics
from qplug.pipeline.results import Inputs, RunResult
from qplug.pipeline.run import run_stages
from qplug.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from torch import Tensor

MOST = 256
"""Calibration examples that are taken from a loader, unless given."""
ANY_OUTPUTS = "features"
"""The task of outputs that are no class scores."""


@exits_named
def quantize(
    model: nn.Module,
    calibration: Iterable[Any],
    recipe: Recipe | str | Path | Mapping[str, Any] = "w8a8",
    *,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    evaluation: Iterable[Any] | None = None,
    task: Task | str | None = None,
    device: str | None = None,
    calibration_examples: int = MOST,
    registry: Registry | None = None,
    observers: Sequence[object] = (),
    cache: Cache | None = None,
) -> RunResult:
    """Quantize ``model`` by ``recipe``, whose model and data play no part; ``model`` stays as it is.

    Args:
        model: a float model. It takes a batch (B, …), by position or by keyword.
        calibration: batches as a ``DataLoader`` yields them: tensors (B, …), tuples whose first is the input, or dicts
            of the model's keywords. Labels are not read.
        recipe: the name of a recipe of qplug, a path, a recipe, or its values. Values may leave out ``version``,
            ``model`` and ``data``.
        evaluate: a function of your own, from a model to numbers by name. It measures the float and the quantized
            model, which take and return what ``model`` does. Comparisons show the first number, the largest as the
            best.
        evaluation: held-out batches with labels, by which the task measures both models.
        task: what the outputs are, a task or its name. ``None``: classification if the model returns one tensor
            (B, classes); else ``features`` of every tensor that it returns, flattened.
        device: as torch names it; that of the model's weights unless given.
        calibration_examples: number of examples to take from ``calibration``, at least 1.
        registry, observers, cache: as ``run`` takes them.

    Returns:
        The result of the run, with the quantized module as ``model``; no run folder is written.

    Raises:
        InputError: the recipe trains, there is no calibration data, evaluation shares an example with it, or
            ``evaluate`` raises or returns no numbers.
        RecipeError, PluginError, EquivalenceError: as ``load_recipe`` and ``run``.
    """
    registry = registry or installed()
    recipe, left_out = _recipe(recipe, registry)
    given = give(model, calibration, task, registry, calibration_examples)
    judged = given.examples(evaluation, "evaluation") if evaluation is not None else None
    if judged is not None:
        check_disjoint(given.calibration, judged)
    recipe = _in_memory(recipe, given, judged, registry)
    with RunContext.open(recipe, None, device or _device(model), registry, observers, cache) as ctx:
        float_model = settle_task(given.source.load(), registry)
        float_model.module.to(ctx.device)
        own = OwnMetrics.of(evaluate, given.source, ctx)
        stream = Stream(given.calibration, float_model.preprocessing, recipe.data.batch_size, ctx.device)
        outputs = check_model(float_model, stream)
        ctx.warnings += [*left_out, *given.calibration.notes, *given.notes]
        ctx.warnings += check_labels(float_model, outputs, {"evaluation": judged})
        ctx.warnings += check_loss(recipe, float_model.task)
        check_gradients(ctx, recipe, float_model, stream)
        inputs = Inputs(float_model, given.source, stream, judged, outputs=outputs, own=own)
        result = run_stages(ctx, recipe, inputs)
    assert result.model is not None
    as_given(result.model)
    return result


@dataclass
class GivenModel:
    """A model in memory with its examples, as a run takes them.

    Attributes:
        source: holds the model.
        calibration: the examples.
        keywords: what dicts of batches may hold.
        notes: how the model is called and read, where that is not plain, one sentence each.
    """

    source: MemoryModel
    calibration: TensorExamples
    keywords: Keywords
    notes: list[str]

    def examples(self, batches: Iterable[Any], name: str) -> TensorExamples:
        """Labelled examples for the same model; labels of a task that reads none are passed over."""
        if self.source.config.detector:
            return ListedImages(batches, name)
        labelled = self.source.config.task != ANY_OUTPUTS
        found = TensorExamples(batches, name, keywords=self.keywords, labelled=labelled)
        first, _ = found[0]
        shape = tuple(self.source.config.shape)
        if tuple(first.shape) != shape or found.names != self.calibration.names:
            what = f"has inputs {tuple(first.shape)} {' '.join(found.names)}".strip()
            raise InputError(f"{what}, and the calibration data {shape}", where=name, fix="give inputs of one kind")
        return found


def give(
    model: nn.Module,
    calibration: Iterable[Any],
    task: Task | str | None = None,
    registry: Registry | None = None,
    limit: int = MOST,
) -> GivenModel:
    """A model in memory and its calibration examples, checked by one forward.

    Raises:
        InputError: there is no model, there are no examples, the task is unknown, or the model fails.
    """
    if not isinstance(model, nn.Module):
        what = f"expected a torch.nn.Module, received a value of type {type(model).__name__}"
        raise InputError(what, where="model", fix="give the module itself, not its state dict, path or class")
    if limit < 1:
        raise InputError(f"expected at least 1, received {limit}", where="calibration_examples")
    if isinstance(task, str):
        task = task_named(task, registry or installed())
    if is_torchvision_detector(model):
        return _give_detector(model, calibration, limit)
    keywords = Keywords.of(model.forward)
    examples = TensorExamples(calibration, "calibration", keywords=keywords, labelled=False, limit=limit)
    first, _ = examples[0]
    named = examples.names if examples.names != keywords.names[:1] else ()  # by position, where that is the same
    values: dict[str, Any] = {
        "name": type(model).__name__,
        "shape": tuple(first.shape),
        "dtype": str(first.dtype).removeprefix("torch."),
        "keywords": named,
        "task": task.name if task is not None else CLASSIFICATION.name,
    }
    notes: list[str] = []
    if task is None:
        out = _outputs(model, values, first[None])
        if out is not None and not accepted(out, 1, CLASSIFICATION):
            task = task_named(ANY_OUTPUTS, registry or installed())
            values |= {"task": ANY_OUTPUTS, "flat": not accepted(out, 1, task)}
            notes.append(_said(out, bool(values["flat"])))
    source = MemoryModel(MemoryModel.Config(source="memory", **values))
    return GivenModel(source.given(model, task), examples, keywords, notes)


def _give_detector(model: nn.Module, calibration: Iterable[Any], limit: int) -> GivenModel:
    """A detector of torchvision, on the smallest canvas that holds the calibration images."""
    examples = ListedImages(calibration, "calibration", labelled=False, limit=limit)
    sizes = [(item.shape[1], item.shape[2]) for item, _ in (examples[index] for index in range(len(examples)))]
    values: dict[str, Any] = {"shape": (3, *canvas_of(model, sizes)), "detector": True, "task": "detection"}
    config = MemoryModel.Config(source="memory", name=type(model).__name__, **values)
    return GivenModel(MemoryModel(config).given(model), examples, Keywords(), [])


def _outputs(model: nn.Module, values: Mapping[str, Any], example: Tensor) -> Any:
    """What the model returns for one example; ``None`` if it fails, which the run's own check explains."""
    config = MemoryModel.Config(source="memory", **{**values, "flat": False})
    module = MemoryModel(config).given(model).load().module
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            return module(example)
        except Exception:
            return None


def _said(out: Any, flat: bool) -> str:
    tensors = floating_tensors(out)
    if not tensors:
        raise InputError(
            f"the model returns {described(out)}, which holds no floating-point tensor (B, …)",
            where="model",
            fix="let it return its scores in float32, before any argmax",
        )
    values = sum(tensor[0].numel() for tensor in tensors)
    read = f"all {values:,} values of its {len(tensors)} tensors are compared" if flat else "its features are compared"
    return f"the model returns {described(out)}: {read} with the float model's; task=… says what they are"


def _recipe(recipe: Recipe | str | Path | Mapping[str, Any], registry: Registry) -> tuple[Recipe, list[str]]:
    """The recipe, whose model is not loaded, and what it left out; raises ``InputError`` if it trains."""
    from qplug.recipe.named import is_name, layers_of_its_own

    if isinstance(recipe, Mapping):
        whole = load_recipe("w8a8", registry=registry).dump()
        recipe = {key: whole[key] for key in ("version", "model", "data")} | dict(recipe)
    left_out: list[str] = []
    if not isinstance(recipe, Recipe):
        named = not isinstance(recipe, Mapping) and is_name(recipe)
        recipe = load_recipe(recipe, registry=registry, allow_code=True)
        own = layers_of_its_own(recipe.quantize) if named else []
        if own:
            rest = tuple(override for override in recipe.quantize.overrides if override.match not in own)
            left_out = [f"left out: the override {listed(own)} of the recipe, which names a layer of another model"]
            recipe = recipe.model_copy(update={"quantize": recipe.quantize.model_copy(update={"overrides": rest})})
    if recipe.finetune is not None or recipe.qat is not None:
        stage = "finetune" if recipe.finetune is not None else "qat"
        raise InputError(
            "expected a recipe without training: no labelled training data is in memory",
            where=f"{stage} of {recipe.name or 'the recipe'}",
            fix="leave the section out, or use qplug.run with data.training",
        )
    return recipe, left_out


def _in_memory(recipe: Recipe, given: GivenModel, judged: TensorExamples | None, registry: Registry) -> Recipe:
    """The recipe with the model and the data that were given in the place of its own."""
    counts = {"calibration": len(given.calibration), "evaluation": len(judged) if judged is not None else 0}
    data: dict[str, Any] = {name: {"source": "memory", "examples": count} for name, count in counts.items()}
    values = recipe.model_dump(mode="json", warnings=False)  # a copy with unchecked values is checked by what follows
    values["model"] = given.source.config.model_dump(mode="json")
    values["data"] = {**data, "batch_size": recipe.data.batch_size}
    return load_recipe(values, registry=registry, allow_code=True)


def _device(model: nn.Module) -> str:
    """Where the model's weights are; the CPU if it has none."""
    return str(next((tensor.device for tensor in model.parameters()), "cpu"))
