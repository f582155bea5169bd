"""Attention without an adapter, from a recipe to the loaded run and the exported file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import qplug

pytestmark = pytest.mark.slow
SIZE = {"img_size": 32, "num_classes": 10}
MODELS = {
    "cait": ("timm.models.cait:Cait", {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "nest": (
        "timm.models.nest:Nest",
        {"patch_size": 2, "num_levels": 2, "embed_dims": [16, 32], "num_heads": [2, 2], "depths": [1, 1]},
    ),
}
PREPROCESSING = (
    "{input_size: [3, 32, 32], mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], interpolation: bilinear, crop_pct: 1.0}"
)


@pytest.mark.parametrize("name", MODELS)
def test_a_run_is_loaded_bit_for_bit_and_exported(name: str, tmp_path: Path) -> None:
    target, kwargs = MODELS[name]
    model = (
        f"{{source: import, target: '{target}', kwargs: {json.dumps(SIZE | kwargs)}, preprocessing: {PREPROCESSING}}}"
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"version: 1\nmodel: {model}\n"
        "data: {batch_size: 5, calibration: {source: digits, split: train, images: 16}, "
        "evaluation: {source: digits, split: test, images: 24}}\n"
        "quantize: {weights: {bits: 8}, activations: {bits: 8, symmetric: false}, "
        "scope: {softmax: true, layernorm: true}}\n"
        "techniques: [{use: baseline.minmax}]\n"
    )
    result = qplug.run(qplug.load_recipe(path), out=tmp_path / "run")
    assert result.metrics["coverage.macs"] == 1.0
    assert result.model is not None
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(qplug.load_quantized(tmp_path / "run")(images), result.model(images))
    assert qplug.export_run(tmp_path / "run", "onnx-qdq", images=8).parity.first_wrong is None
