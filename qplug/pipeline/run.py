"""The run, as one straight line. Nothing else knows the order."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from qplug.core.component import ModelSource
from qplug.core.device import forget_peak_memory, forward_seconds, full_float32, parse_device, peak_memory_mb
from qplug.core.distributed import launched
from qplug.core.examples import LabelTransform
from qplug.core.storage.cache import Cache
from qplug.core.storage.hashing import fingerprint, images_digest
from qplug.core.storage.run_folder import RunFolder, check_target
from qplug.core.types import OUT_OF_SCOPE, Change, Site
from qplug.data.loading import batches, check_disjoint
from qplug.data.stream import Stream
from qplug.hooks.caller import TechniqueCaller
from qplug.hooks.registry import Registry, backend_of, component, installed
from qplug.models.adapters import make_explicit
from qplug.models.batchnorm import Folding, fold_batchnorms
from qplug.models.equivalence import EquivalenceCheck
from qplug.pipeline.clock import Clock
from qplug.pipeline.result_cache import ResultCache, source_key
from qplug.pipeline.run_key import EVALUATION_SEED, content_if_known, lock
from qplug.pipeline.stages.assign import QuantizerAssigner, allocate, resolve
from qplug.pipeline.stages.calibrate import PluginCalibration
from qplug.pipeline.stages.evaluate import Logits, compare, evaluate, share_right
from qplug.pipeline.stages.rewrite import ask_for_training, rewrite
from qplug.pipeline.stages.smooth import smooth
from qplug.pipeline.warnings import notes
from qplug.pipeline.weights import write_weights
from qplug.quantization.accounting import CONVENTIONS, DEFAULT
from qplug.quantization.calibration.calibrator import Calibration, watched_sites
from qplug.quantization.costs import account, costs, uniform_plan
from qplug.quantization.plan import Plan
from qplug.quantization.sites import find_sites
from qplug.recipe import Recipe
from qplug.training.reconstruction.reconstructor import Reconstructor
from qplug.training.supervised.history import History
from qplug.training.supervised.stages import Trainer


@dataclass
class RunResult:
    """What a run found out.

    Attributes:
        recipe: as it was validated, defaults included.
        metrics: flat, with the keys that DESIGN lists; shares are fractions between 0 and 1.
        plan: the whole decision.
        sensitivity: site → bits → SQNR in dB, where an allocator asked.
        warnings: one sentence each.
        trainings: by stage, how those went that the recipe asks for.
        folder: the run folder, where one was written.
    """

    recipe: Recipe
    metrics: dict[str, Any]
    plan: Plan
    sensitivity: dict[str, dict[int, float]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    trainings: dict[str, History] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def float_macs(self) -> dict[str, int]:
        """Module → multiply-accumulates of one image that stay in float."""
        return self.plan.float_macs


@full_float32()
def run(
    recipe: Recipe,
    *,
    out: Path | None = None,
    device: str = "cpu",
    registry: Registry | None = None,
    observers: Sequence[object] = (),
    cache: Cache | None = None,
) -> RunResult:
    """Quantize and measure by ``recipe``.

    Where a launcher started several processes, all of them go the same way, share the batches of what is trained, and
    the first one writes.

    Args:
        recipe: from ``load_recipe``.
        out: the run folder to write; ``None`` writes nothing.
        device: as torch names it.
        registry: what is installed, unless given.
        observers: objects with ``qplug_observe``.
        cache: where statistics, float logits and quantizers are kept for other runs; nothing is kept unless given.

    Raises:
        InputError: what the recipe names cannot be used; nothing is written.
        PluginError: a technique raised, or answered what it may not.
        EquivalenceError: a step that promised to preserve the function did not.
    """
    processes = launched()
    if out is not None:
        check_target(out)
    out = out if processes.is_main else None
    registry = registry or installed()
    where = parse_device(processes.device(device))
    forget_peak_memory(where)
    backend = backend_of(recipe.backend, registry)
    techniques = [component(registry.techniques, step) for step in recipe.techniques]
    steps = TechniqueCaller(techniques, registry, recipe.seed, observers)
    clock = Clock(steps)

    with clock.stage("load"):
        known_by = content_if_known(recipe, registry, device) if out is not None else None
        origin = component(registry.models, recipe.model)
        source = origin.load()
        kept = origin.files() if out is not None else {}
        calibration_images = component(registry.datasets, recipe.data.calibration).open(recipe.seed)
        evaluation_images = component(registry.datasets, recipe.data.evaluation).open(EVALUATION_SEED)
        check_disjoint(calibration_images, evaluation_images)
        training_images = None
        if recipe.data.training is not None and (recipe.finetune or recipe.qat):
            training_images = component(registry.datasets, recipe.data.training).open(recipe.seed)
            check_disjoint(training_images, evaluation_images, "training")
        transform, size = source.preprocessing.transform(), recipe.data.batch_size
        float_model = source.module.to(where)
        model = copy.deepcopy(float_model)
        probe, _ = next(batches(calibration_images, transform, min(8, size), where))

    image = source.preprocessing.example().to(where)
    with clock.stage("rewrite"):
        make_explicit(model, registry.adapters, image)  # before, so that attention's Softmax can be rewritten too
        guard = EquivalenceCheck(model, probe)
        changes = rewrite(model, steps, guard)
        make_explicit(model, registry.adapters, image)  # behind, since they may bring attention too
        warnings = ask_for_training(changes) if recipe.finetune is None else []
        warnings += [processes.note] if processes.note else []
        if recipe.data.training is not None and training_images is None:
            warnings.append("data.training is given, and the recipe trains nothing: neither finetune nor qat")

    rewriters = {change.technique for change in changes}
    made_by = [origin, *(t for t in techniques if t.name() in rewriters), *(a.build for a in registry.adapters)]
    made_by += [*float_model.modules(), *model.modules()]
    recall = ResultCache(
        cache, clock, registry.quantizers, made_by, seed=recipe.seed, device=where.type, batch_size=size
    )
    trainer = None
    if training_images is not None:
        trainer = Trainer(source, float_model, training_images, recipe.seed, processes, recall, techniques)
    tuned = None
    if trainer is not None and recipe.finetune is not None:
        with clock.stage("finetune", trainer.steps(recipe.finetune)) as advance:
            changes.append(trainer.finetune(model, recipe.finetune, advance))
            guard.reset()
        tuned = copy.deepcopy(model)

    with clock.stage("sites"):
        folding = fold_batchnorms(model, image)  # those that a rewrite brought have their statistics by now
        guard.check(folding.changes)
        changes += folding.changes
        site_map = find_sites(model, image)
        specs = resolve(recipe.quantize, site_map.sites)
        scope = recipe.quantize.scope
        sites = watched_sites(site_map.sites, scope.softmax, scope.layernorm)

    with clock.stage("statistics", len(calibration_images)) as advance:
        statistics = Calibration(model, sites, len(calibration_images), recipe.seed)
        stream = (images for images, _ in batches(calibration_images, transform, size, where))
        loss = recipe.calibration.loss if steps.need_gradients() else "none"
        recall.collect(statistics, stream, loss, advance, (calibration_images, source.preprocessing))

    with clock.stage("smoothing"):
        shown = Stream(calibration_images, source.preprocessing, size, where)
        asked = {site.name: specs[site.name] for site in sites if site.name in specs}
        calibrators = PluginCalibration(steps, model, shown, asked)
        changes += smooth(model, steps, statistics, site_map, specs, guard, calibrators.show)
        calibrators.show_rest()

    fitter = QuantizerAssigner(steps, statistics, specs, sites, recall)
    with clock.stage("bits"):
        allocation, table = allocate(steps, fitter, model, site_map, registry.backends[recipe.backend])

    with clock.stage("ranges", len(fitter.sites)) as advance:
        plan = Plan(fitter.decide(allocation, advance), changes)
        outside = {site.name: OUT_OF_SCOPE for site in site_map.sites if site not in sites}
        plan.float_sites = {**specs.skipped, **outside, **folding.left}
        plan.total_macs, plan.float_macs = site_map.total_macs, site_map.float_macs(plan.decisions)

    if steps.implements("qplug_reconstruct"):
        found = Reconstructor(steps, backend, model, plan, list(shown), recall, recipe.calibration.loss, recipe.seed)
        blocks = found.blocks()
        with clock.stage("reconstruction", len(blocks)) as advance:
            found.run(
                lambda: {
                    "blocks": blocks,
                    "model": [repr(model), fingerprint(model.state_dict())],
                    "plan": plan.to_dict(),
                    "images": images_digest(calibration_images),
                    "preprocessing": repr(source.preprocessing),
                    "loss": recipe.calibration.loss,
                },
                advance,
            )
        warnings += found.notes()

    if trainer is not None and recipe.qat is not None:
        with clock.stage("qat", trainer.steps(recipe.qat)) as advance:
            plan.changes.append(trainer.qat(model, plan, backend, recipe.qat, advance))

    with clock.stage("quantize"):
        quantized = backend.apply(copy.deepcopy(model), plan)

    with clock.stage("evaluation", len(evaluation_images)) as advance, backend.inference(quantized):
        seen = images_digest(evaluation_images)
        slot = recall.slot("logits", lambda: {"model": source_key(source), "images": seen})
        models = [quantized] if slot.tensors else [quantized, float_model]
        models += [tuned] if tuned is not None else []
        judge = source.preprocessing.transform()  # its own, to know what of the evaluation examples it lost
        said, labels = evaluate(models, batches(evaluation_images, judge, size, where), advance)
        if slot.tensors is None:
            slot.keep({"logits": said[1].logits}, said[1].seconds)
        logits = Logits(slot.tensors["logits"] if slot.tensors else said[1].logits, said[0].logits, labels)
        timing, _ = next(batches(calibration_images, transform, size, where))
        float_seconds = forward_seconds(float_model, timing) * len(calibration_images) / len(timing)
        quantized_seconds = forward_seconds(quantized, timing) * len(calibration_images) / len(timing)

    trainings = trainer.histories if trainer is not None else {}
    metrics: dict[str, Any] = {
        **compare(logits),
        **{
            name: metric.compute(logits.float_, logits.quantized, logits.labels)
            for name, metric in registry.metrics.items()
        },
        **account(model, plan),
        **({"finetuned.top1": share_right(said[-1].logits, labels)} if tuned is not None else {}),
        **{key: value for history in trainings.values() for key, value in history.metrics().items()},
        "bits.by": allocation[0],
        "bops_convention": str(CONVENTIONS[DEFAULT]),
        "images.calibration": len(calibration_images),
        "images.evaluation": len(evaluation_images),
        "float.forward_seconds": float_seconds,
        "quantized.forward_seconds": quantized_seconds,
        **{f"seconds.{stage}": seconds for stage, seconds in clock.seconds.items()},
        "seconds.total": clock.total,
        "cache.seconds_saved": clock.saved,
        "peak_memory_mb": peak_memory_mb(where),
    }
    if out is not None and known_by != content_if_known(recipe, registry, device):
        known_by = None
        warnings.append("weights, images or code changed during the run, so it answers for no other run")
    lost = [f"of the evaluation's, {loss}" for loss in judge.losses()] if isinstance(judge, LabelTransform) else []
    warnings += trainer.warnings if trainer is not None else []
    warnings += (
        steps.idle() + steps.notes() + notes(source, plan) + folding.note() + lost + (cache.warnings if cache else [])
    )
    result = RunResult(recipe, metrics, plan, table.measured() if table else {}, warnings, trainings, out)
    if out is not None:
        digests = [calibration_images.digest(i) for i in range(len(calibration_images))]
        hashes = {"model": source.fingerprint, "calibration_images": digests, "evaluation_images": seen}
        if training_images is not None:
            hashes["training_images"] = images_digest(training_images)
        locked = lock(recipe, known_by=known_by, device=device, hashes=hashes, registry=registry)
        _write(out, result, model, logits, locked, kept)
    return result


WIDTHS = ((8, 8), (4, 8), (4, 4))
"""Bits of weights and activations at which ``inspect`` counts costs."""


@dataclass
class Inspection:
    """What of a model can be quantized.

    Attributes:
        sites: all of them, the inputs of Softmax and LayerNorm included.
        total_macs: of one image.
        float_macs: module → multiply-accumulates that no site covers.
        float_norms: BatchNorms that could not be folded, each with the reason.
        costs: convention → bits, as ``W8A8`` → size and bit operations, as ``metrics.costs`` has them, with every
            operand that has a site quantized.
    """

    sites: list[Site]
    total_macs: int
    float_macs: dict[str, int]
    float_norms: dict[str, str] = field(default_factory=dict)
    costs: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    @property
    def coverage(self) -> float:
        """Share of multiply-accumulates whose both operands have sites."""
        return 1.0 - sum(self.float_macs.values()) / self.total_macs if self.total_macs else 0.0


def inspect(model_source: ModelSource, registry: Registry | None = None) -> Inspection:
    """Load a model, make its attention explicit, fold its BatchNorms, list its sites, and count what it costs."""
    source = model_source.load()
    example = source.preprocessing.example()
    folding = _prepare(source.module, registry or installed(), example)
    site_map = find_sites(source.module, example)
    plans = {f"W{weights}A{inputs}": uniform_plan(site_map, weights, inputs) for weights, inputs in WIDTHS}
    counted = {
        name: {bits: costs(source.module, plan, convention) for bits, plan in plans.items()}
        for name, convention in CONVENTIONS.items()
    }
    return Inspection(site_map.sites, site_map.total_macs, site_map.uncovered_macs, folding.left, counted)


def _prepare(model: torch.nn.Module, registry: Registry, image: torch.Tensor) -> Folding:
    """What every model becomes before its sites are found."""
    make_explicit(model, registry.adapters, image)
    return fold_batchnorms(model, image)


def _write(
    out: Path,
    result: RunResult,
    model: torch.nn.Module,
    logits: Logits,
    locked: dict[str, Any],
    kept: dict[str, str],
) -> None:
    with RunFolder(out) as folder:
        for name, text in kept.items():
            folder.write_text(name, text)
        result.warnings += write_weights(folder, model, result.plan)  # first: metrics.json holds the warnings
        folder.write_text("recipe.yaml", result.recipe.yaml())
        folder.write_json("lock.json", locked)
        folder.write_json("plan.json", result.plan.to_dict())
        folder.write_json("metrics.json", {**result.metrics, "warnings": result.warnings})
        if result.sensitivity:
            folder.write_json("sensitivity.json", result.sensitivity)
        if result.trainings:
            folder.write_json("training.json", {n: history.to_dict() for n, history in result.trainings.items()})
        folder.write_tensors("evaluation.safetensors", logits.by_image())


__all__ = ["Change", "Inspection", "RunResult", "inspect", "run"]
