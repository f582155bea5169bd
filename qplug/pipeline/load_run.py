"""A run folder → the quantized model that it describes, or the model and the plan that a backend makes it from."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from qplug.core.component import ModelSource
from qplug.core.device import parse_device
from qplug.core.errors import InputError, RecipeError, exits_named
from qplug.core.storage.run_folder import AGAIN
from qplug.core.task import Task
from qplug.core.text import listed
from qplug.core.types import Change
from qplug.hooks.registry import Registry, backend_of, component, installed
from qplug.hooks.tasks import settle_task
from qplug.models.batchnorm import BY
from qplug.models.in_memory import MemoryModel, as_given
from qplug.pipeline.check_model import settle_inputs
from qplug.pipeline.code_identity import code_changes, missing_plugins, plugin_packages
from qplug.pipeline.context import RunContext
from qplug.pipeline.read_run import ONE_PIECE, Run, read_run
from qplug.pipeline.results import Inputs
from qplug.pipeline.run_key import parts_that_load
from qplug.pipeline.stages.prepare import prepare
from qplug.pipeline.stages.rewrite import HOOKS, rewrite
from qplug.pipeline.weights import FILE, load_weights
from qplug.quantization.calls import check_one_forward, refuse_bypassed
from qplug.quantization.plan import Plan, UnreadableQuantizer
from qplug.recipe import AllowCode, load_recipe
from qplug.training.supervised.problem import TRAINED_BY as BY_TRAINING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from qplug.data.preparation import Preparation
    from qplug.recipe import Recipe


CHANGED = (
    "install the versions of the run, or run its recipe again; 'qplug verify' shows whether the outputs are still those"
    " of the run, and changed_code=True (qplug export --changed-code) then loads it"
)


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
        code_changes: one sentence for each package whose code is not that of the run.
    """

    run: Run
    recipe: Recipe
    model: nn.Module
    plan: Plan
    preprocessing: Preparation
    task: Task
    code_changes: list[str] = field(default_factory=list)


def load_quantized(
    run_folder: str | Path,
    device: str = "cpu",
    registry: Registry | None = None,
    *,
    changed_code: bool = False,
    allow_code: AllowCode = False,
    model: nn.Module | None = None,
) -> nn.Module:
    """The quantized model of a run; inputs and outputs are those of the float model, as the run read them.

    The recipe's model is built without its weights (``ModelSource.architecture``), so the original checkpoint need not
    exist. Techniques rewrite the modules again, and BatchNorms are folded again. Everything that a technique derives
    from weights must be in the state of its modules, which the folder holds. The backend's ``inference`` context gives
    the same values faster.

    Args:
        run_folder: written by ``qplug run`` or ``qplug.run``.
        device: as torch names it.
        registry: the installed plugins unless given.
        changed_code: load the run although the code of qplug or of a plugin is not that of the run. Its outputs may be
            others; ``qplug verify`` compares them.
        allow_code: whether the run's recipe may name code from outside the installed packages, as ``load_recipe``.
        model: the float model of a run of ``qplug.quantize``, whose folder holds no code; its weights may be others.
            The loaded model then takes and returns what ``model`` does.

    Returns:
        The model in eval mode, lowered to the recipe's backend. On the device of the run, its outputs equal those of
        the run bit for bit. On CUDA that holds within ``qplug.full_float32()``: by default torch rounds the operands of
        convolutions there.

    Raises:
        InputError: the folder is no run folder, has another format, is incomplete, holds a file that the run did not
            write, or names something that is not installed; the code of qplug or of a plugin changed; or a technique
            does not rewrite the model as it did in the run; or a forward does not call every quantized module.
    """
    registry = registry or installed()
    where = parse_device(device)
    planned = load_planned(run_folder, registry, changed_code, allow_code=allow_code, model=model)
    loaded = lowered(planned, registry, where)
    return loaded if model is None else as_given(loaded)


def lowered(planned: LoadedRun, registry: Registry, device: torch.device) -> nn.Module:
    """The model of a run, lowered to the recipe's backend, and checked by one forward."""
    model = backend_of(planned.recipe.backend, registry).apply(planned.model.to(device), planned.plan).eval()
    check_one_forward(model, planned.plan, planned.preprocessing.example().to(device), "the loaded model")
    return model


@exits_named
def load_planned(
    run_folder: str | Path,
    registry: Registry,
    changed_code: bool = False,
    *,
    allow_code: AllowCode = False,
    model: nn.Module | None = None,
) -> LoadedRun:
    """The float model of a run and its plan, for any backend or exporter to lower; see ``load_quantized``."""
    run = read_run(run_folder)
    run.check()
    recipe = recipe_of(run, registry, allow_code)
    changes = changed_since(run, recipe, registry)
    if changes and not changed_code:
        raise InputError("; ".join(changes), where=str(run.folder / "lock.json"), fix=CHANGED)
    plan = _plan(run, registry)
    source = settle_task(_source(run, recipe, registry, model).architecture(), registry)
    settle_inputs(source)
    techniques = [component(registry.techniques, step) for step in recipe.techniques]
    with RunContext.of(techniques, recipe.backend, recipe.seed, registry=registry) as ctx:
        rewritten = rewrite(ctx, Inputs(source))
        sites = prepare(ctx, rewritten)
        _check_changes(ctx, rewritten.changes, plan, run.folder)
    load_weights(rewritten.module, run.folder / FILE, plan)
    known = {site.name: (site.kind, site.shape) for site in sites.site_map.sites}
    for site in (decision.site for decision in plan):
        if known.get(site.name) != (site.kind, site.shape):
            what = f"quantizes {site.name} ({site.kind.value}, {site.shape}), which the recipe's model lacks"
            raise InputError(what, where=str(run.folder / "plan.json"), fix=AGAIN)
    refuse_bypassed(sites.site_map.bypassed, plan.decisions)
    return LoadedRun(run, recipe, rewritten.module, plan, source.preprocessing, source.task, changes)


def recipe_of(run: Run, registry: Registry, allow_code: AllowCode) -> Recipe:
    """The recipe of a run.

    Raises:
        InputError: it names something that is not installed; the error names the distribution and version of the run.
        CodeNotAllowed: as ``load_recipe``.
    """
    missing = missing_plugins(run.lock, registry)
    try:
        return load_recipe(run.folder / "recipe.yaml", registry=registry, allow_code=allow_code)
    except RecipeError as error:
        if not missing:
            raise
        what = f"the run used {' and '.join(missing)}; without it: {error.problems[0].what}"
        names = " ".join(f"'{name}'" for name in missing.values())
        fix = f"pip install {names}; 'qplug plugins' lists what is installed"
        raise InputError(what, where=str(run.folder), fix=fix) from error


def _source(run: Run, recipe: Recipe, registry: Registry, model: nn.Module | None) -> ModelSource:
    """The source of the model; one that reads files of the run folder reads those that the run wrote alone."""
    source = component(registry.models, recipe.model)
    if isinstance(source, MemoryModel):
        return source if model is None else source.given(model)
    if model is not None:
        what = f"expected no model: the run's own comes from its source '{source.name()}'"
        raise InputError(what, where="model", fix="leave model= out")
    if type(source).kept_in is not ModelSource.kept_in and (added := run.added()):
        what = (
            f"holds {listed(added, 5)}, which the run did not write, and the source '{source.name()}' reads the folder"
        )
        raise InputError(what, where=str(run.folder), fix="move these files to another folder")
    return source.kept_in(run.folder)


def changed_since(run: Run, recipe: Recipe, registry: Registry) -> list[str]:
    """One sentence for each package that makes the run's model and whose code is not that of the run."""
    kinds = {row["quantizer"]["kind"] for row in run.plan["decisions"]}
    return code_changes(run.lock, parts_that_load(recipe, registry, sorted(kinds)), plugin_packages(registry))


def _plan(run: Run, registry: Registry) -> Plan:
    where = str(run.folder / "plan.json")
    try:
        return Plan.from_dict(run.plan, registry.quantizers)
    except UnreadableQuantizer as error:
        raise _unreadable(error, run, registry) from error
    except InputError as error:
        missing = missing_plugins(run.lock, registry)
        what = error.what + (f"; the run used {' and '.join(missing)}" if missing else "")
        fix = f"pip install {' '.join(repr(name) for name in missing.values())}" if missing else error.fix or AGAIN
        raise InputError(what, where=error.where or where, fix=fix) from error


def _unreadable(error: UnreadableQuantizer, run: Run, registry: Registry) -> InputError:
    """An error that names the quantizer's plugin, with its version in the run and now."""
    owner = registry.owners.get(f"quantizer:{error.kind}")
    where = str(run.folder / "plan.json")
    if owner is None:
        return InputError(error.what, where=where, fix=ONE_PIECE)
    then = run.lock.plugins.get(owner.name)
    versions = f"{owner.distribution} {then.version if then else '(unknown)'} in the run, {owner.version} now"
    fix = f"install {owner.distribution}=={then.version}" if then and then.version != owner.version else ONE_PIECE
    return InputError(f"{error.what}; plugin {owner.name}: {versions}", where=where, fix=fix)


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
