"""The models of an analysis: one as it is, and one that a recipe rewrites or that a run folder holds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from qplug.analysis.ranges.depth import Depth, find_depth
from qplug.core.errors import InputError
from qplug.core.types import Change
from qplug.hooks.registry import Registry, component
from qplug.models.float_model import FloatModel
from qplug.pipeline.context import RunContext
from qplug.pipeline.load_run import load_planned
from qplug.pipeline.results import Inputs, RewrittenModel
from qplug.pipeline.stages.prepare import prepare
from qplug.pipeline.stages.rewrite import HOOKS, rewrite
from qplug.pipeline.warnings import ask_for_training
from qplug.quantization.sites import SiteMap, find_sites
from qplug.recipe import load_recipe


@dataclass
class Subject:
    """A float model that can be looked at: eval mode, attention explicit, BatchNorms folded.

    Attributes:
        model: on the device of the images.
        image: (1, C, H, W) float32, with which it is traced.
        classes: ``module:Class`` of what is one block.
        origin: the model's name, or the recipe or run folder that made it.
        changes: what was rewritten, smoothed and folded.
        notes: one sentence each that a reader must know.
    """

    model: nn.Module
    image: Tensor
    classes: list[str]
    origin: str
    changes: list[Change]
    notes: list[str]

    @cached_property
    def site_map(self) -> SiteMap:
        """Its sites."""
        return find_sites(self.model, self.image)

    @cached_property
    def depth(self) -> Depth:
        """Where its operations stand."""
        operations = dict.fromkeys(site.module for site in self.site_map.sites)
        return find_depth(self.model, list(operations), self.image, self.classes)


def as_it_is(ctx: RunContext, inputs: Inputs) -> Subject:
    """The model itself."""
    model = rewrite(ctx, inputs, ask=False)
    source = inputs.float_model
    return _subject(ctx, model, source.name, [source.note] if source.note else [])


def rewritten(ctx: RunContext, inputs: Inputs, path: Path) -> Subject:
    """The model as the techniques of a recipe rewrite it, neither trained nor smoothed.

    Args:
        ctx: of the analysis.
        inputs: the float model, and the images on which rewrites that promise to preserve the function are checked.
        path: of the recipe, whose model and data play no part.

    Raises:
        InputError: no technique of the recipe rewrites the model.
        RecipeError: the recipe is wrong.
        EquivalenceError: a rewrite did not keep its promise.
    """
    recipe = load_recipe(path, registry=ctx.registry)
    techniques = [component(ctx.registry.techniques, step) for step in recipe.techniques]
    with RunContext.of(techniques, recipe.backend, recipe.seed, str(ctx.device), ctx.registry) as own:
        model = rewrite(own, inputs)
        changes = list(model.changes)
        if not changes:
            raise InputError(
                f"no technique of it rewrites {inputs.float_model.name}",
                where=str(path),
                fix=f"name a recipe with one that implements {', '.join(HOOKS)} ('qplug techniques NAME' shows the "
                "hooks of each), or a run folder",
            )
        return _subject(own, model, str(path), ask_for_training(changes))


def _subject(ctx: RunContext, model: RewrittenModel, origin: str, notes: list[str]) -> Subject:
    model.equivalence = None  # folding BatchNorms is no rewrite of a technique
    prepare(ctx, model)
    return Subject(model.module, model.example, ctx.registry.blocks, origin, model.changes, notes)


def of_run(source: FloatModel, folder: Path, image: Tensor, registry: Registry) -> Subject:
    """The float model that a run ended with: rewritten, trained, smoothed, its weights rounded as its plan says.

    Raises:
        InputError: ``folder`` is no run folder, or its model takes other images than ``source`` does.
    """
    planned = load_planned(folder, registry)
    if planned.preprocessing != source.preprocessing:
        raise InputError(
            f"its model takes other images than {source.name}: {planned.preprocessing}, and not {source.preprocessing}",
            where=str(folder),
            fix="name the model that the run began with",
        )
    bits = planned.run.metrics["bits.weights_mean"]
    note = f"the weights of {folder} are those of its plan, rounded to {bits:.3g} bits on average"
    model = planned.model.to(image.device)
    return Subject(model, image, registry.blocks, str(folder), planned.plan.changes, [note])
