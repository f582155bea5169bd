"""The models of an analysis: one as it is, and one that a recipe rewrites or that a run folder holds."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from qplug.analysis.ranges.depth import Depth, find_depth
from qplug.core.errors import InputError
from qplug.core.types import Change
from qplug.hooks.caller import TechniqueCaller
from qplug.hooks.registry import Registry, component
from qplug.models.adapters import make_explicit
from qplug.models.batchnorm import fold_batchnorms
from qplug.models.equivalence import EquivalenceCheck
from qplug.models.float_model import FloatModel
from qplug.pipeline.load_run import load_planned
from qplug.pipeline.stages.rewrite import HOOKS, ask_for_training, rewrite
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


def as_it_is(source: FloatModel, image: Tensor, registry: Registry) -> Subject:
    """The model itself; ``source.module`` stays as it was."""
    model = copy.deepcopy(source.module)
    make_explicit(model, registry.adapters, image)
    folding = fold_batchnorms(model, image)
    notes = [source.note] if source.note else []
    return Subject(model, image, registry.blocks, source.name, folding.changes, notes)


def rewritten(source: FloatModel, path: Path, image: Tensor, shown: Tensor, registry: Registry) -> Subject:
    """The model as the techniques of a recipe rewrite it, and no more: neither trained nor smoothed.

    Args:
        source: the float model; its module stays as it was.
        path: of the recipe, whose model and data play no part.
        image: (1, C, H, W) float32.
        shown: (B, C, H, W) float32 real images, on which rewrites that promise to preserve the function are held to it.
        registry: what is installed.

    Raises:
        InputError: no technique of the recipe rewrites the model.
        RecipeError: the recipe is wrong.
        EquivalenceError: a rewrite did not keep its promise.
    """
    recipe = load_recipe(path, registry=registry)
    steps = TechniqueCaller([component(registry.techniques, step) for step in recipe.techniques], registry, recipe.seed)
    model = copy.deepcopy(source.module)
    make_explicit(model, registry.adapters, image)
    changes = rewrite(model, steps, EquivalenceCheck(model, shown))
    if not changes:
        raise InputError(
            f"no technique of it rewrites {source.name}",
            where=str(path),
            fix=f"name a recipe with one that implements {', '.join(HOOKS)} ('qplug techniques NAME' shows the "
            "hooks of each), or a run folder",
        )
    make_explicit(model, registry.adapters, image)
    folding = fold_batchnorms(model, image)
    return Subject(model, image, registry.blocks, str(path), changes + folding.changes, ask_for_training(changes))


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
