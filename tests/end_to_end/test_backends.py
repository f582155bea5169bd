"""One plan, two backends, on real models and images: SQ-b, OPT-m and Greedy MP at three widths give the same logits."""

import pytest
import torch
from paths import ROOT

import qplug
from qplug.core.device import full_float32
from qplug.data.loading import batches
from qplug.hooks.registry import backend_of, component, installed

pytestmark = pytest.mark.real
RECIPE = ROOT / "recipes/imagenet/mptq_vit_mp5.yaml"


@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "vit_tiny_patch16_224"])
def test_one_plan_gives_the_same_logits_on_both_backends(shared, tmp_path, name, bits):
    pytest.importorskip("modelopt", reason="pip install 'qplug[modelopt]'")
    sample, registry = shared / "data" / "imagenet_sample", installed()
    values = {
        "model.name": name,
        "model.checkpoint_path": shared / "weights" / f"{name}.safetensors",
        "data.calibration.path": sample / "calib",
        "data.calibration.class_map": sample / "class_map.txt",
        "data.calibration.images": 16,
        "data.evaluation.path": sample / "dev",
        "data.evaluation.class_map": sample / "class_map.txt",
        "data.evaluation.images": 50,
        "quantize.weights.bits": bits,
        "quantize.activations.bits": bits,
        "techniques.2.weights": float(bits),
        "techniques.2.activations": float(bits),
    }
    recipe = qplug.load_recipe(RECIPE, [f"{key}={value}" for key, value in values.items()])
    folder = tmp_path / "run"
    qplug.run(recipe, out=folder)
    images = component(registry.datasets, recipe.data.evaluation).open(0)
    transform = component(registry.models, recipe.model).load().preprocessing.transform()
    said = []
    for backend in ("brevitas", "modelopt"):
        path = folder / "recipe.yaml"
        path.write_text(path.read_text().replace("backend: brevitas", f"backend: {backend}"))
        model = qplug.load_quantized(folder)
        with full_float32(), backend_of(backend, registry).inference(model):
            said.append(torch.cat([model(shown) for shown, _ in batches(images, transform, 25)]))
    assert said[0].shape == (50, 1000)
    assert torch.equal(*said)
