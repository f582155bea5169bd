"""A run folder → the quantized model that it describes, or the model and the plan that a backend makes it from."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from qplug.core.device import parse_device
from qplug.core.errors import InputError
from qplug.core.storage.run_folder import AGAIN, Run, read_run
from qplug.core.task import Task
from qplug.core.types import Change
from qplug.hooks.registry import Registry, backend_of, component, installed
from qplug.models.batchnorm import BY
from qplug.pipeline.context import RunContext
from qplug.pipeline.results import Inputs
from qplug.pipeline.stages.prepare import prepare
from qplug.pipeline.stages.rewrite import HOOKS, rewrite
from qplug.pipeline.weights import FILE, load_weights
from qplug.quantization.calls import check_one_forward, refuse_bypassed
from qplug.quantization.plan import Plan
from qplug.recipe import load_recipe
from qplug.training.supervised.problem import TRAINED_BY as BY_TRAINING

if TYPE_CHECKING:
    from torch import nn

    from qplug.data.preparation import Preparation
    from qplug.recipe import Recipe


@dataclass
class LoadedRun:
    """The model and the plan of a run folder, not lowered to a backend yet.

    Attributes:
        run: the folder.
        recipe: with every default resolved.
        model: rewritten, attention explicit, BatchNorms folded, with the run's weights; in eval mode, on the CPU.
        plan: of that model.
        preprocessing: from images, or texts, to the model's inputs.
        task: of the model's outputs.
    """

    run: Run
    recipe: Recipe
    model: nn.Module
    plan: Plan
    preprocessing: Preparation
    task: Task


def load_quantized(run_folder: str | Path, device: str = "cpu", registry: Registry | None = None) -> nn.Module:
    """The quantized model of a run; inputs and outputs are those of the float model.

    The recipe's model is built without its weights (``ModelSource.architecture``), so the original checkpoint need not
    exist. Techniques rewrite the modules again, and BatchNorms are folded again. Everything that a technique derives
    from weights must be in the state of its modules, which the folder holds. The backend's ``inference`` context gives
    the same values faster.

    Args:
        run_folder: written by ``qplug run`` or ``qplug.run``.
        device: as torch names it.
        registry: the installed plugins unless given.

    Returns:
        The model in eval mode, lowered to the recipe's backend. On the device of the run, its outputs equal those of
        the run bit for bit. On CUDA that holds within ``qplug.full_float32()``: by default torch rounds the operands of
        convolutions there.

    Raises:
        InputError: the folder is no run folder, has another format, is incomplete or damaged, or names something that
            is not installed; or a technique does not rewrite the model as it did in the run; or a forward does not call
            every quantized module.
    """
    registry = registry or installed()
    where = parse_device(device)
    planned = load_planned(run_folder, registry)
    model = backend_of(planned.recipe.backend, registry).apply(planned.model.to(where), planned.plan).eval()
    check_one_forward(model, planned.plan, planned.preprocessing.example().to(where), "the loaded model")
    return model


def load_planned(run_folder: str | Path, registry: Registry) -> LoadedRun:
    """The float model of a run and its plan, for any backend or exporter to lower; see ``load_quantized``."""
    run = read_run(run_folder)
    recipe = load_recipe(run.folder / "recipe.yaml", registry=registry)
    plan = _plan(run, registry)
    source = component(registry.models, recipe.model).kept_in(run.folder).architecture()
    techniques = [component(registry.techniques, step) for step in recipe.techniques]
    with RunContext.of(techniques, recipe.backend, recipe.seed, registry=registry) as ctx:
        model = rewrite(ctx, Inputs(source))
        sites = prepare(ctx, model)
        _check_changes(ctx, model.changes, plan, run.folder)
    load_weights(model.module, run.folder / FILE, plan)
    known = {site.name: (site.kind, site.shape) for site in sites.site_map.sites}
    for site in (decision.site for decision in plan):
        if known.get(site.name) != (site.kind, site.shape):
            what = f"quantizes {site.name} ({site.kind.value}, {site.shape}), which the recipe's model lacks"
            raise InputError(what, where=str(run.folder / "plan.json"), fix=AGAIN)
    refuse_bypassed(sites.site_map.bypassed, plan.decisions)
    return LoadedRun(run, recipe, model.module, plan, source.preprocessing, source.task)


def _plan(run: Run, registry: Registry) -> Plan:
    where = str(run.folder / "plan.json")
    try:
        return Plan.from_dict(run.plan, registry.quantizers)
    except InputError as error:
        raise InputError(error.what, where=error.where or where, fix=error.fix or AGAIN) from error
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"holds no plan: {type(error).__name__}: {error}", where=where, fix=AGAIN) from error


def _check_changes(ctx: RunContext, made: list[Change], plan: Plan, folder: Path) -> None:
    """Raises ``InputError`` where the model is not rewritten and folded as it was in the run."""
    changes = [change for change in plan.changes if change.technique not in BY_TRAINING.values()]  # weights, no modules
    rewriters = {technique.name() for hook in HOOKS for technique, _ in ctx.caller.each_technique(hook)}
    rewriters -= {technique.name() for technique, _ in ctx.caller.each_technique("qplug_smooth")}
    rewriters.add(BY)
    rest = [change for change in changes[len(made) :] if change.technique in rewriters]
    pairs = zip_longest(made, changes[: len(made)] + rest)
    other = next((now or then for now, then in pairs if now != then), None)
    if other is not None:
        raise InputError(
            f"{other.technique} does not rewrite {other.where} as it did in the run",
            where=str(folder / "plan.json"),
            fix="it may depend on the original weights, or its code may have changed: run the recipe again",
        )
