"""The models of an analysis: the original, and one that a recipe rewrites or that a run folder holds."""

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
from qplug.recipe import AllowCode, load_recipe


@dataclass
class AnalyzedModel:
    """A float model ready for analysis: eval mode, attention explicit, BatchNorms folded.

    Attributes:
        model: the module, on the device of the images.
        image: (1, C, H, W) float32, for tracing.
        classes: ``module:Class`` of the block classes.
        label: name of the model, or path of the recipe or run folder that produced it.
        changes: rewrites, smoothings and folded BatchNorms.
        warnings: sentences for the user.
    """

    model: nn.Module
    image: Tensor
    classes: list[str]
    label: str
    changes: list[Change]
    warnings: list[str]

    @cached_property
    def site_map(self) -> SiteMap:
        """Sites of the model."""
        return find_sites(self.model, self.image)

    @cached_property
    def depth(self) -> Depth:
        """Positions of the operations."""
        operations = dict.fromkeys(site.module for site in self.site_map.sites)
        return find_depth(self.model, list(operations), self.image, self.classes)


def original_model(ctx: RunContext, inputs: Inputs) -> AnalyzedModel:
    """The float model without any technique."""
    model = rewrite(ctx, inputs, ask=False)
    source = inputs.float_model
    return _prepared(ctx, model, source.name, [source.note] if source.note else [])


def rewritten_model(ctx: RunContext, inputs: Inputs, path: Path) -> AnalyzedModel:
    """The model after the rewrites of a recipe, neither trained nor smoothed.

    Args:
        ctx: context of the analysis.
        inputs: the float model, and the images that check rewrites which promise to preserve the function.
        path: the recipe; its model and data are ignored.

    Raises:
        InputError: no technique of the recipe rewrites the model.
        RecipeError: the recipe is wrong.
        EquivalenceError: a rewrite broke its promise to preserve the function.
    """
    recipe = load_recipe(path, registry=ctx.registry, allow_code=True)  # its model is not loaded
    techniques = [component(ctx.registry.techniques, step) for step in recipe.techniques]
    with RunContext.of(techniques, recipe.backend, recipe.seed, str(ctx.device), ctx.registry) as recipe_ctx:
        model = rewrite(recipe_ctx, inputs)
        changes = list(model.changes)
        if not changes:
            raise InputError(
                f"no technique of this recipe rewrites {inputs.float_model.name}",
                where=str(path),
                fix=f"use a technique that implements one of {', '.join(HOOKS)} ('qplug techniques NAME' lists the "
                "hooks), or a run folder",
            )
        return _prepared(recipe_ctx, model, str(path), ask_for_training(changes))


def _prepared(ctx: RunContext, model: RewrittenModel, label: str, warnings: list[str]) -> AnalyzedModel:
    model.equivalence = None  # the check is for rewrites of techniques, not for folding BatchNorms
    prepare(ctx, model)
    return AnalyzedModel(model.module, model.example, ctx.registry.blocks, label, model.changes, warnings)


def run_model(
    source: FloatModel, folder: Path, image: Tensor, registry: Registry, allow_code: AllowCode = False
) -> AnalyzedModel:
    """The final float model of a run: rewritten, trained and smoothed, with the rounded weights of its plan.

    Raises:
        InputError: ``folder`` is no run folder, or its model needs another preprocessing than ``source``.
    """
    planned = load_planned(folder, registry, allow_code=allow_code)
    if planned.preprocessing != source.preprocessing:
        raise InputError(
            f"expected the preprocessing of {source.name}, {source.preprocessing}, received {planned.preprocessing}",
            where=str(folder),
            fix="name the model of this run",
        )
    bits = planned.run.metrics["bits.weights_mean"]
    warning = f"the weights of {folder} are rounded to {bits:.3g} bits on average"
    model = planned.model.to(image.device)
    return AnalyzedModel(model, image, registry.blocks, str(folder), planned.plan.changes, [warning])
