"""How much faster than float32 the deployment recipe's file is in ONNX Runtime, on the real ViT-Ti."""

from __future__ import annotations

import pytest
from paths import RECIPES

from qplug import load_recipe, run
from qplug.export.bench import bench
from qplug.export.cpu import caution

RECIPE = RECIPES / "deploy_int8.yaml"
NAME = "vit_tiny_patch16_224"

pytestmark = pytest.mark.real


def test_integers_are_well_over_half_as_fast_again(shared, tmp_path):
    """Measured with AVX512 VNNI, one thread: 1.85 at batch 1, 1.96 at batch 8."""
    if caution() is not None:
        pytest.skip("without VNNI integers gain less")
    images = shared / "data" / "imagenet_sample"
    settings = [f"model.checkpoint_path={shared / 'weights' / NAME}.safetensors", "data.evaluation.images=8"]
    for part, folder in (("calibration", "calib"), ("evaluation", "dev")):
        settings += [f"data.{part}.path={images / folder}", f"data.{part}.class_map={images / 'class_map.txt'}"]
    run(load_recipe(RECIPE, settings), out=tmp_path / "int8")
    found = bench(tmp_path / "int8", batches=(1, 8), threads=1, rounds=15, profiled=True)
    assert min(race.ratio.median for race in found.races) >= 1.5

    products = ("MatMul", "FusedMatMul", "Gemm", "Conv", "ConvInteger", "MatMulInteger")
    in_float = [share for share in found.profiles[0].shares if share.operator in products]
    assert sum(share.nodes for share in in_float) == 1  # the linear that the recipe leaves out
