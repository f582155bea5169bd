"""What calibrating and running the whole method costs on the real ViT-Ti, in multiples of the float model's forward."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import RECIPES
from plugin_toys import real_images, real_model
from torch import Tensor, nn
from workbench import least_seconds

from qplug import UniformQuantizer, load_recipe, run
from qplug.core.device import forward_seconds
from qplug.core.memory import keep_freed_memory
from qplug.hooks.registry import backend_of, installed
from qplug.models.adapters import make_explicit
from qplug.pipeline.weights import load_weights
from qplug.quantization.plan import Plan

RECIPE = RECIPES / "imagenet" / "mptq_vit_w4a4.yaml"
NAME = "vit_tiny_patch16_224"
CALIBRATION = ("statistics", "smoothing", "bits", "ranges")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _as_the_command_line_does() -> None:
    keep_freed_memory()


@pytest.fixture(scope="module")
def settings(shared: Path) -> list[str]:
    images = shared / "data" / "imagenet_sample"
    return [
        f"model.name={NAME}",
        f"model.checkpoint_path={shared / 'weights' / NAME}.safetensors",
        f"data.calibration.path={images / 'calib'}",
        f"data.evaluation.path={images / 'dev'}",
        f"data.calibration.class_map={images / 'class_map.txt'}",
        f"data.evaluation.class_map={images / 'class_map.txt'}",
        "data.evaluation.images=8",
    ]


@pytest.fixture(scope="module")
def folder(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of the recipe."""
    target = tmp_path_factory.mktemp("runs") / "w4a4"
    run(load_recipe(RECIPE, settings), out=target)
    return target


def test_calibration_costs_at_most_30_float_forwards(benchmark, shared, settings, folder):
    """SQ-b, OPT-m, V-2SF and Hessian-guided ranges at W4A4, 32 images, reading and decoding them included."""
    source = real_model(shared, NAME)
    images = real_images(shared, "calib", 32, source.preprocessing.transform())
    recipe = load_recipe(RECIPE, settings)

    def measure() -> float:
        first = json.loads((folder / "metrics.json").read_text())
        forwards = [forward_seconds(source.module, images), first["float.forward_seconds"]]
        calibrations = [sum(first[f"seconds.{stage}"] for stage in CALIBRATION)]
        for _ in range(2):
            metrics = run(recipe).metrics
            forwards += [metrics["float.forward_seconds"], forward_seconds(source.module, images)]
            calibrations.append(sum(metrics[f"seconds.{stage}"] for stage in CALIBRATION))
        return min(calibrations) / min(forwards)

    multiple = benchmark.pedantic(measure, rounds=1, iterations=1)
    benchmark.extra_info["float forwards"] = multiple
    print(f"\ncalibration: {multiple:.1f} float forwards")
    assert multiple <= 30.0  # measured: 23


def test_a_fake_quantized_forward_costs_at_most_1_4_plain_ones(benchmark, shared, folder):
    """Batch 32, attention's matmuls included; a plain one divides, rounds, clamps and multiplies every operand.

    What a plain one costs over timm's own float model depends on the processor: memory passes and attention made
    explicit took 1.2 float forwards on one, 1.3 to 1.7 on another, whose pages came slowly.
    """
    source, again, third = (real_model(shared, NAME) for _ in range(3))
    images = real_images(shared, "calib", 32, source.preprocessing.transform())
    plan = json.loads((folder / "plan.json").read_text())
    quantized = lowered(again.module, images, folder, plan)
    for decision in plan["decisions"]:
        if decision["quantizer"] and decision["site"]["role"] != "weight":
            bits = decision["quantizer"]["bits"]
            decision["quantizer"] = UniformQuantizer(torch.tensor(0.1), None, bits, signed=True).to_dict()
    plain = lowered(third.module, images, folder, plan)

    backend = backend_of("brevitas", installed())
    with backend.inference(quantized), backend.inference(plain), torch.no_grad():
        models = {"quantized": quantized, "plain": plain, "float": source.module}
        seconds = benchmark.pedantic(
            lambda: least_seconds({name: partial(model, images) for name, model in models.items()}, rounds=9),
            rounds=1,
            iterations=1,
        )
    multiples = {name: seconds["quantized"] / seconds[name] for name in ("plain", "float")}
    benchmark.extra_info |= {f"{name} forwards": multiple for name, multiple in multiples.items()}
    print(f"\nforward: {multiples['plain']:.2f} plain ones, {multiples['float']:.2f} float ones")
    assert multiples["plain"] <= 1.4  # measured: 1.2; 1.5 before large tensors were looked up in pairs


def lowered(model: nn.Module, images: Tensor, folder: Path, plan: dict[str, Any]) -> nn.Module:
    """The smoothed model of ``folder`` under ``plan``."""
    registry = installed()
    make_explicit(model, registry.adapters, images[:1])
    decided = Plan.from_dict(plan, registry.quantizers)
    load_weights(model, folder / "model.safetensors", decided)
    return backend_of("brevitas", registry).apply(model, decided)
