"""Segmentation from a folder of transformers, and of torchvision, through a run to its comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from vision_toys import change_config, write_segmenter

from qplug import InputError, load_quantized, run
from qplug.analysis.compare.rows import group
from qplug.hooks.registry import installed
from qplug.pipeline.read_run import read_run
from qplug.recipe import recipe_type

PREPARED = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear"}


def write(root: Path) -> None:
    draw = np.random.default_rng(0)
    for folder in ("calibration", "images", "masks"):
        (root / folder).mkdir()
    for index in range(6):
        for folder in ("calibration", "images"):
            Image.fromarray(draw.integers(0, 256, (24, 40, 3), dtype=np.uint8)).save(root / folder / f"{index}.png")
        Image.fromarray(draw.integers(0, 3, (24, 40), dtype=np.uint8)).save(root / "masks" / f"{index}.png")


def recipe(root: Path, model: dict[str, Any], bits: int = 8, **data: Any) -> Any:
    evaluation = {"source": "masks", "path": str(root / "images"), "masks": str(root / "masks"), **data}
    return recipe_type(installed()).model_validate(
        {
            "version": 1,
            "model": {"task": "semantic_segmentation", **model},
            "data": {
                "calibration": {"source": "folder", "path": str(root / "calibration"), "images": 4},
                "evaluation": evaluation,
                "batch_size": 4,
            },
            "quantize": {"weights": {"bits": bits}, "activations": {"bits": bits}},
            "techniques": [{"use": "baseline.minmax"}],
        }
    )


def folder(root: Path) -> dict[str, Any]:
    write_segmenter(root / "segformer")
    return {"source": "transformers_vision", "path": str(root / "segformer")}


@pytest.mark.slow
def test_segformer_runs_loads_and_compares(tmp_path: Path) -> None:
    write(tmp_path)
    model = folder(tmp_path)
    results = [run(recipe(tmp_path, model, bits), out=tmp_path / f"run{bits}") for bits in (8, 2)]
    assert results[0].metrics["coverage.macs"] == 1.0
    assert 0.0 < results[0].metrics["float.miou"] < 1.0
    assert results[0].metrics["quantized.agreement"] > 0.9 > results[1].metrics["quantized.agreement"]
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        found = load_quantized(tmp_path / "run8")(x)
        assert found.shape == (1, 3, 8, 8)  # a quarter of the size
        assert torch.equal(found, results[0].model(x))
    (rows,) = group([read_run(tmp_path / f"run{bits}") for bits in (8, 2)])
    assert (rows.score_title, rows.rows[0].by_example.shape) == ("mIoU", (1, 6))


@pytest.mark.slow
def test_torchvision_is_read_by_its_output_out(tmp_path: Path) -> None:
    write(tmp_path)
    target = "torchvision.models.segmentation:lraspp_mobilenet_v3_large"
    kwargs = {"weights": None, "weights_backbone": None, "num_classes": 3}
    model = {"source": "import", "target": target, "kwargs": kwargs}
    whole = {**PREPARED, "crop_mode": "squash", "crop_pct": 1.0}
    result = run(recipe(tmp_path, {**model, "preprocessing": whole}))
    assert result.metrics["score"] == "miou"
    with pytest.raises(InputError, match="semantic_segmentation needs the whole image") as error:
        run(recipe(tmp_path, {**model, "preprocessing": {**PREPARED, "crop_pct": 0.875}}))
    assert "crop_mode: squash" in error.value.fix


def test_data_and_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    model = folder(tmp_path)
    Image.fromarray(np.full((24, 40), 3, dtype=np.uint8)).save(tmp_path / "masks" / "5.png")
    with pytest.raises(InputError, match="a label map has class 3, and the model has classes 0 … 2") as error:
        run(recipe(tmp_path, model))
    assert error.value.where.endswith("5.png")
    digits = recipe(tmp_path, model).model_copy(deep=True)
    other = recipe_type(installed()).model_validate(
        {**digits.dump(), "data": {**digits.dump()["data"], "evaluation": {"source": "digits", "split": "test"}}}
    )
    with pytest.raises(InputError, match="the model predicts a class for every pixel, and a label is"):
        run(other)
    change_config(tmp_path / "segformer", do_center_crop=True, crop_size={"height": 24, "width": 24})
    with pytest.raises(InputError, match="needs the whole image"):
        run(recipe(tmp_path, model))


def test_outputs_that_do_not_fit_in_memory_are_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qplug.pipeline import check_model as module

    write(tmp_path)
    monkeypatch.setattr(module, "free_bytes", lambda: 3000)
    with pytest.raises(InputError, match="the outputs of both models for 6 evaluation examples take") as error:
        run(recipe(tmp_path, folder(tmp_path)))
    assert error.value.fix == "set the number of evaluation examples to at most 1"
