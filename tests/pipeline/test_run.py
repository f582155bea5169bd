"""The run from recipe to folder, on toys: what it measures, what it refuses, and that nothing is half-written."""

from __future__ import annotations

import json
import mmap
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from plugin_toys import toy_deit, toy_swin
from pydantic import create_model

import qplug
from qplug import (
    Config,
    InputError,
    Metric,
    ModelSource,
    PluginError,
    QuantizerChoice,
    QuantSpec,
    Site,
    SiteKind,
    SiteStats,
    Technique,
    UniformQuantizer,
    hookimpl,
)
from qplug.core.device import peak_memory_mb
from qplug.core.text import Alarm
from qplug.data.loading import batches
from qplug.hooks.registry import backend_of
from qplug.models.adapters import ADAPTERS, make_explicit
from qplug.models.float_model import FloatModel, Preprocessing
from qplug.pipeline.run import run
from qplug.pipeline.weights import load_weights
from qplug.quantization.calibration.calibrator import Calibration
from qplug.quantization.calibration.samplers import SampleSize
from qplug.quantization.plan import Plan
from qplug.quantization.sites import find_sites
from qplug.recipe import recipe_type
from qplug.testing import toy_images, toy_registry, toy_vit
from qplug.testing.toys import SIZE

STAGES = ("load", "rewrite", "sites", "statistics", "smoothing", "bits", "ranges", "quantize", "evaluation")
DESIGNED = {
    *("float.top1", "quantized.top1", "quantized.agreement", "quantized.logit_sqnr_db", "size_mb", "bops_g"),
    *("bops_convention", "bits.weights_mean", "bits.activations_mean", "coverage.macs"),
    *("images.calibration", "images.evaluation", "peak_memory_mb", "float.forward_seconds", "seconds.total"),
    *(f"seconds.{stage}" for stage in STAGES),
}
COSTS = ("size_mb", "bops_g", "float.size_mb", "float.bops_g")
BESIDE = {
    *("float.size_mb", "float.bops_g", "quantized.forward_seconds", "cache.seconds_saved", "bits.by"),
    *("float.chance", "images.evaluation_labels", "score", "score_title"),
    *(f"accounting.{convention}.{cost}" for convention in ("q-mlp", "hawq") for cost in COSTS),
}
"""Measured beside what the design lists."""

MPTQ = (
    {"use": "mptq_vit.sq_b"},
    {"use": "mptq_vit.opt_m", "candidates": 10},
    {"use": "mptq_vit.greedy_mp", "weights": 5.0, "activations": 5.0},
    {"use": "tsptq_vit.v_2sf", "kinds": ["post_softmax"]},
    {"use": "baseline.hessian", "candidates": 10, "refine": 4},
)


def source(name: str, build) -> type[ModelSource]:
    """A model source without parameters."""

    class Source(ModelSource):
        Config = create_model("Config", __base__=Config, source=(Literal[name], name))

        def load(self) -> FloatModel:
            return FloatModel.of(build(), name, Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3, "nearest", 1.0))

    return Source


def unknown_attention() -> torch.nn.Module:
    """The toy with timm's attention in a class that sets an attribute as it runs, which no graph can hold."""
    from timm.layers.attention import Attention

    model = toy_vit()

    class StrangeAttention(Attention):
        def forward(self, x, *args, **kwargs):
            self.seen = x.mean()
            return super().forward(x, *args, **kwargs)

    model.blocks[1].attn.__class__ = StrangeAttention
    return model


def overflowing(block: int) -> torch.nn.Module:
    """The block's MLP overflows float32: infinite after fc1, and NaN wherever that is read."""
    model = toy_vit()
    model.blocks[block].norm2.weight.data.mul_(1e20)
    model.blocks[block].mlp.fc1.weight.data.mul_(1e20)
    return model


def with_nan() -> torch.nn.Module:
    model = toy_vit()
    model.blocks[1].mlp.fc1.weight.data[0, 0] = float("nan")
    return model


MODELS = {
    **{"swin": toy_swin, "deit": toy_deit, "strange": unknown_attention, "nan": with_nan},
    **{"overflow_early": lambda: overflowing(0), "overflow_late": lambda: overflowing(1)},
}


class Raises(Technique):
    """Divides by zero at one site."""

    class Config(Config):
        use: Literal["trial.raises"] = "trial.raises"

    @hookimpl
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice | None:
        if site.name == "blocks.1.mlp.fc2.weight":
            raise ZeroDivisionError("nothing to divide by")
        return None


class OneKind(Technique):
    """Takes inputs of linears alone."""

    class Config(Config):
        use: Literal["trial.one_kind"] = "trial.one_kind"

    @hookimpl
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice | None:
        if site.kind.value != "linear_input":
            return None
        return QuantizerChoice(UniformQuantizer.from_range(stats.min, stats.max, spec), "min-max")


@pytest.fixture
def registry():
    made = toy_registry(Raises, OneKind)
    made.models = made.models | {name: source(name, build) for name, build in MODELS.items()}
    return made


def recipe(registry, *steps, model="toy", bits=4, seed=0, batch_size=32, images=6, **quantize):
    steps = steps or MPTQ
    return recipe_type(registry).model_validate(
        {
            "version": 1,
            "seed": seed,
            "model": {"source": model},
            "data": {
                "calibration": {"source": "toy", "split": "train", "images": images},
                "evaluation": {"source": "toy", "split": "test", "images": 7},
                "batch_size": batch_size,
            },
            "quantize": {"weights": {"bits": bits}, "activations": {"bits": bits}, **quantize},
            "techniques": [{"use": step} if isinstance(step, str) else step for step in steps],
        }
    )


def measured_alike(one, other) -> None:
    machine = re.compile("seconds|memory")
    assert one.keys() == other.keys()
    for key, value in one.items():
        if not machine.search(key):
            assert repr(other[key]) == repr(value), key


# what it measures


SLOW = pytest.mark.slow


@pytest.mark.parametrize("model", ["toy", pytest.param("deit", marks=SLOW), pytest.param("swin", marks=SLOW)])
def test_the_whole_method_end_to_end(registry, model):
    result = run(recipe(registry, model=model), registry=registry)
    metrics = result.metrics
    assert set(metrics) == DESIGNED | BESIDE
    for key in ("float.top1", "quantized.top1", "quantized.agreement", "coverage.macs"):
        assert 0.0 <= metrics[key] <= 1.0
    assert metrics["coverage.macs"] == 1.0
    assert (metrics["images.calibration"], metrics["images.evaluation"]) == (6, 7)
    assert 4.0 < metrics["bits.weights_mean"] <= 5.0
    assert 4.0 < metrics["bits.activations_mean"] <= 5.0
    assert metrics["size_mb"] < metrics["float.size_mb"]
    assert metrics["bops_g"] < 0.1 * metrics["float.bops_g"]
    assert metrics["quantized.logit_sqnr_db"] > 3.0  # measured: 6.0 (swin) to 13.6
    assert 0.9 <= sum(metrics[f"seconds.{s}"] for s in STAGES) / metrics["seconds.total"] <= 1.0
    assert {d.technique for d in result.plan} == {"mptq_vit.opt_m", "tsptq_vit.v_2sf", "baseline.hessian"}
    assert {change.technique for change in result.plan.changes} == {"mptq_vit.sq_b"}
    assert [warning for warning in result.warnings if not isinstance(warning, Alarm)] == []  # a toy is at chance
    assert result.folder is None
    assert set(result.sensitivity) == set(result.plan.decisions)


def test_scope_adds_the_inputs_of_softmax_and_layernorm(registry):
    plain = run(recipe(registry, "toy.minmax"), registry=registry)
    whole = run(recipe(registry, "toy.minmax", scope={"softmax": True, "layernorm": True}), registry=registry)
    more = {d.site.kind.value for d in whole.plan} - {d.site.kind.value for d in plain.plan}
    assert more == {"softmax_input", "layernorm_input"}
    assert whole.metrics["quantized.logit_sqnr_db"] != plain.metrics["quantized.logit_sqnr_db"]


@pytest.mark.slow
def test_more_bits_lose_less(registry):
    """64 images, so that clipping what calibration did not show is not what decides."""
    runs = [run(recipe(registry, "baseline.hessian", bits=b, images=64), registry=registry) for b in (3, 6, 12)]
    values = [result.metrics["quantized.logit_sqnr_db"] for result in runs]
    assert values[0] + 9 < values[1]  # measured: 5.1, 18.7 and 55.6
    assert values[1] + 25 < values[2]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["toy", "swin"])
def test_the_same_recipe_gives_the_same_run(registry, model):
    one, other = (run(recipe(registry, model=model, seed=3), registry=registry) for _ in range(2))
    measured_alike(one.metrics, other.metrics)
    assert one.plan.to_dict() == other.plan.to_dict()
    assert one.sensitivity == other.sensitivity


def test_another_seed_gives_another_run(registry):
    one, other = (run(recipe(registry, "toy.minmax", seed=seed), registry=registry) for seed in (3, 4))
    assert one.plan.to_dict() != other.plan.to_dict()


@pytest.mark.slow
def test_a_run_leaves_the_global_generators_alone(registry):
    import random

    import numpy as np

    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    run(recipe(registry), registry=registry)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "batch_size"), [("toy", 1), ("swin", 4)])
def test_the_batch_size_does_not_change_the_plan(registry, model, batch_size):
    """Beyond a scale in a hundred, whose two best candidates lie within float32's rounding of each other."""
    whole = run(recipe(registry, model=model), registry=registry).plan
    parts = run(recipe(registry, model=model, batch_size=batch_size), registry=registry).plan
    assert whole.decisions.keys() == parts.decisions.keys()
    same = []
    for one, other in zip(whole, parts, strict=True):
        assert (one.spec, one.technique) == (other.spec, other.technique), one.site.name
        for name, scale in one.quantizer.named_buffers():
            again = dict(other.quantizer.named_buffers())[name]
            same.append(torch.isclose(again, scale, rtol=1e-3).flatten())
    assert torch.cat(same).float().mean() > 0.99


@pytest.mark.parametrize("build", [toy_vit, toy_swin])
@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("loss", ["cross_entropy", "kl", "logits"])
def test_the_batch_size_does_not_change_the_samples(build, batch_size, loss):
    """Caps so small that every operation leaves rows out."""
    model, images = build(), toy_images(6)
    make_explicit(model, ADAPTERS, images[:1])
    sites = find_sites(model, images[:1]).sites
    statistics = []
    for size in (6, batch_size):
        calibration = Calibration(model, sites, 6, 0, SampleSize(rows=12, slices=6, slice_rows=2))
        calibration.collect(images.split(size), loss)
        statistics.append(calibration)
    for site in sites:
        whole, parts = (calibration.stats(site) for calibration in statistics)
        torch.testing.assert_close(parts.sample, whole.sample, rtol=1e-4, atol=1e-5, msg=site.name)
        torch.testing.assert_close(parts.channel_mean, whole.channel_mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(parts.image_min, whole.image_min, rtol=1e-4, atol=1e-5)
        if whole.product is not None:
            one, other = parts.product.importance, whole.product.importance
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6 * float(other.max()), msg=site.name)


# what it warns of


def test_a_technique_that_owned_no_site_is_warned_of(registry):
    """The baselines run behind everything else, and among themselves in the order of the recipe."""
    result = run(recipe(registry, "baseline.minmax", "mptq_vit.opt_m", "baseline.hessian"), registry=registry)
    assert {d.technique for d in result.plan} == {"baseline.minmax", "mptq_vit.opt_m"}
    idle = [warning for warning in result.warnings if "had nothing to do" in warning]
    assert len(idle) == 1
    assert "baseline.hessian" in idle[0]


def test_a_smoothing_that_matches_nothing_is_warned_of(registry):
    steps = {"use": "mptq_vit.sq_b", "match": ["nothing.*"]}, "toy.minmax"
    result = run(recipe(registry, *steps), registry=registry)
    assert any("mptq_vit.sq_b" in warning for warning in result.warnings)


def test_attention_that_no_adapter_knows_stays_in_float_and_is_counted(registry):
    result = run(recipe(registry, "toy.minmax", model="strange"), registry=registry)
    assert [name for name in result.float_macs if "attn" in name] == ["blocks.1.attn"]
    assert result.float_macs["blocks.1.attn"] == 2 * 400  # both matmuls of one block: 2 heads · 5 · 5 · 8 each
    assert result.metrics["coverage.macs"] == pytest.approx(1 - 800 / result.plan.total_macs)
    assert any("MACs stay in float" in warning and "blocks.1.attn" in warning for warning in result.warnings)
    assert not any(name.startswith("blocks.1.attn.matmul") for name in result.plan.decisions)


def test_what_an_override_leaves_in_float_is_counted(registry):
    skip = [{"match": "blocks.0.mlp.fc1*", "skip": True}]
    result = run(recipe(registry, "toy.minmax", overrides=skip), registry=registry)
    assert result.float_macs == {"blocks.0.mlp.fc1": 2560}
    by_override = {name for name, reason in result.plan.float_sites.items() if "override" in reason}
    assert by_override == {"blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1.input"}
    outside = set(result.plan.float_sites) - by_override
    assert {result.plan.float_sites[name] for name in outside} == {"quantize.scope"}
    assert all(("norm" in name or "softmax" in name) and name.endswith(".input") for name in outside)
    assert result.metrics["coverage.macs"] == pytest.approx(1 - 2560 / result.plan.total_macs)


@pytest.mark.slow
def test_without_its_weights_the_run_says_that_they_are_random(registry):
    config = {"source": "timm", "name": "vit_tiny_patch16_224", "preprocessing": {"input_size": [3, 16, 16]}}
    made = recipe_type(registry).model_validate({**recipe(registry, "toy.minmax", images=2).dump(), "model": config})
    assert any("random" in warning for warning in run(made, registry=registry).warnings)


# what it refuses


def refused(registry, made, tmp_path: Path, error=InputError, **options):
    """The error of a run that must write nothing."""
    with pytest.raises(error) as caught:
        run(made, out=tmp_path / "run", registry=registry, **options)
    assert list(tmp_path.iterdir()) == []
    return caught.value


def test_calibration_and_evaluation_may_not_overlap(registry, tmp_path):
    values = recipe(registry, "toy.minmax").dump()
    values["data"]["evaluation"]["split"] = "train"
    error = refused(registry, recipe_type(registry).model_validate(values), tmp_path)
    assert "share 6 examples" in str(error)
    assert "toy/train/0" in str(error)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta:x"])
def test_a_device_that_is_not_there(registry, tmp_path, device):
    assert device in str(refused(registry, recipe(registry), tmp_path, device=device))


def test_a_technique_that_raises_is_named(registry, tmp_path):
    error = refused(registry, recipe(registry, "trial.raises", "toy.minmax"), tmp_path, PluginError)
    assert "ZeroDivisionError: nothing to divide by" in str(error)
    for part in ("trial.raises", "qplug.testing 0", "qplug_make_quantizer", "blocks.1.mlp.fc2.weight"):
        assert part in error.where
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_a_site_that_no_technique_takes(registry, tmp_path):
    error = refused(registry, recipe(registry, "trial.one_kind"), tmp_path)
    assert "no technique of the recipe estimates the range of patch_embed.proj.weight" in str(error)
    assert "baseline.hessian" in str(error)


def test_nan_in_the_weights(registry, tmp_path):
    assert "blocks.1.mlp.fc1.weight" in str(refused(registry, recipe(registry, model="nan"), tmp_path))


@pytest.mark.parametrize(
    ("model", "where"), [("overflow_early", "blocks.0.mlp.fc1"), ("overflow_late", "blocks.1.mlp.fc1")]
)
def test_activations_that_overflow_are_refused_by_name(registry, tmp_path, model, where):
    error = refused(registry, recipe(registry, model=model), tmp_path)
    assert f"NaN or infinite on calibration images; the first such values come from {where} (Linear)" in str(error)
    assert error.where == model


def test_a_folder_that_exists_is_refused_before_any_work(registry, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep")
    seen = Watch()
    with pytest.raises(InputError, match="exists"):
        run(recipe(registry), out=tmp_path / "run", registry=registry, observers=[seen])
    assert seen.events == []
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "mine.txt"]


class Watch:
    """Remembers events, and interrupts the run at the one that it is told."""

    def __init__(self, at: tuple[str, str] | None = None) -> None:
        self.at, self.events = at, []

    @hookimpl
    def qplug_observe(self, event) -> None:
        self.events.append((event.stage, event.phase))
        if (event.stage, event.phase) == self.at:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_observers_see_every_stage_in_order(registry):
    watch = Watch()
    run(recipe(registry), registry=registry, observers=[watch])
    assert [stage for stage, phase in watch.events if phase == "start"] == list(STAGES)
    assert [stage for stage, phase in watch.events if phase == "end"] == list(STAGES)
    assert {stage for stage, phase in watch.events if phase == "advance"} == {
        *("statistics", "bits", "ranges", "evaluation")
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "at", [("load", "start"), ("statistics", "advance"), ("ranges", "advance"), ("evaluation", "end")]
)
def test_an_interrupted_run_leaves_nothing(registry, tmp_path, at):
    refused(registry, recipe(registry), tmp_path, KeyboardInterrupt, observers=[Watch(at)])


@pytest.mark.slow
def test_an_interrupt_while_writing_leaves_nothing(registry, tmp_path, monkeypatch):
    from qplug.core.storage.run_folder import RunFolder

    def interrupted(*_, **__):
        assert len(list(tmp_path.iterdir())) == 1  # the partial folder
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "write_tensors", interrupted)
    refused(registry, recipe(registry), tmp_path, KeyboardInterrupt)


# what it writes


FILES = {"recipe.yaml", "lock.json", "plan.json", "metrics.json", "evaluation.safetensors", "model.safetensors"}


def rebuilt(folder: Path, model: torch.nn.Module, registry) -> tuple[torch.nn.Module, object]:
    """The quantized model of a run folder, from its plan and its weights alone."""
    make_explicit(model, registry.adapters, toy_images(1))
    plan = Plan.from_dict(json.loads((folder / "plan.json").read_text()), registry.quantizers)
    load_weights(model, folder / "model.safetensors", plan)
    backend = backend_of("brevitas", registry)
    return backend.apply(model.eval(), plan), backend


@pytest.mark.slow
@pytest.mark.parametrize(("name", "build"), [("toy", toy_vit), ("deit", toy_deit), ("swin", toy_swin)])
def test_a_run_folder_is_complete_and_gives_back_the_model_bit_for_bit(registry, tmp_path, name, build):
    kept = {}
    registry.metrics = {"trial.keep": Metric("keep", lambda f, q, y: kept.update(logits=q) or 0.0)}
    made = recipe(registry, model=name)
    result = run(made, out=tmp_path / "run", registry=registry)
    assert result.folder == tmp_path / "run"
    assert {path.name for path in result.folder.iterdir()} == FILES | {"sensitivity.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]

    metrics = json.loads((result.folder / "metrics.json").read_text())
    assert metrics.pop("warnings") == result.warnings
    assert metrics == result.metrics
    lock = json.loads((result.folder / "lock.json").read_text())
    assert lock["seed"] == 0
    assert len(lock["hashes"]["calibration_images"]) == 6
    again = qplug.load_recipe(result.folder / "recipe.yaml", registry=registry)
    assert again.dump() == {**made.dump(), "name": "recipe"}  # it had none

    model, backend = rebuilt(result.folder, build(), registry)
    images = registry.datasets["toy"](made.data.evaluation).open(made.seed)
    transform = registry.models[name](made.model).load().preprocessing.transform()
    with backend.inference(model):
        outputs = torch.cat([model(pixels) for pixels, _ in batches(images, transform, 32)])
    assert torch.equal(outputs, kept["logits"])


def test_a_run_without_an_allocator_writes_no_sensitivity(registry, tmp_path):
    run(recipe(registry, "toy.minmax"), out=tmp_path / "run", registry=registry)
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES


@pytest.mark.slow
def test_the_resolved_recipe_of_a_folder_runs_to_the_same_result(registry, tmp_path):
    first = run(recipe(registry), out=tmp_path / "one", registry=registry)
    again = qplug.load_recipe(tmp_path / "one" / "recipe.yaml", registry=registry)
    second = run(again, out=tmp_path / "two", registry=registry)
    measured_alike(first.metrics, second.metrics)
    assert (tmp_path / "one" / "plan.json").read_bytes() == (tmp_path / "two" / "plan.json").read_bytes()
    weights = (tmp_path / "one" / "model.safetensors").read_bytes()
    assert weights == (tmp_path / "two" / "model.safetensors").read_bytes()


def test_a_rewrite_reaches_the_softmax_inside_attention(registry):
    """timm's attention calls a function; only its explicit form has a Softmax that can be replaced."""
    steps = ({"use": "fq_vit.log_int_softmax", "integer_exp": True}, "toy.minmax")
    result = run(recipe(registry, *steps), registry=registry)
    replaced = [change.where for change in result.plan.changes if change.technique == "fq_vit.log_int_softmax"]
    assert replaced == ["blocks.0.attn.softmax", "blocks.1.attn.softmax"]
    kinds = {d.site.kind: d.technique for d in result.plan}
    assert kinds[SiteKind.POST_SOFTMAX] == "fq_vit.log_int_softmax"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is that of getrusage")
def test_nor_the_peak_memory_of_the_process_that_started_it():
    code = "import torch; from qplug.core.device import peak_memory_mb; print(peak_memory_mb(torch.device('cpu')))"
    ballast = torch.ones(500_000_000, dtype=torch.uint8)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < peak_memory_mb(torch.device("cpu")) - 300
    del ballast


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can forget a peak")
def test_a_run_does_not_inherit_the_peak_memory_of_what_came_before(registry):
    with mmap.mmap(-1, 800 * 2**20) as ballast:  # goes back to the system for certain, unlike what is freed
        for _ in range(800):
            ballast.write(b"\1" * 2**20)
        before = peak_memory_mb(torch.device("cpu"))
    result = run(recipe(registry, "toy.minmax"), registry=registry)
    assert result.metrics["peak_memory_mb"] < before - 400
