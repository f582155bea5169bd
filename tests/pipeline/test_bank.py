"""Features of a run: judged by neighbours in a bank, among themselves, or by their cosine alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qplug import run
from qplug.analysis.compare.rows import group
from qplug.core.errors import InputError
from qplug.hooks.registry import installed
from qplug.pipeline.read_run import read_run
from qplug.pipeline.results import RunResult
from qplug.recipe import recipe_type

TRAIN = {"source": "digits", "split": "train"}
TEST = {"source": "digits", "split": "test", "images": 60}


def judged(out: Path | None = None, bits: int = 8, evaluation: Any = TEST, **values: Any) -> RunResult:
    training = values.pop("training", None)
    recipe = {
        "version": 1,
        "model": {"source": "zoo", "name": "vit_digits", "task": "features"},
        "data": {"calibration": {**TRAIN, "images": 8}, "evaluation": evaluation, "training": training},
        "quantize": {"weights": {"bits": bits}, "activations": {"bits": bits}},
        "techniques": [{"use": "baseline.minmax"}],
        **values,
    }
    return run(recipe_type(installed()).model_validate(recipe), out=out)


def said(result: RunResult, word: str) -> list[str]:
    return [warning for warning in result.warnings if word in warning]


@pytest.mark.slow
def test_a_bank_judges_and_what_was_read_is_said() -> None:
    result = judged(training=TRAIN)
    assert result.metrics["float.top1"] > 0.95
    assert result.metrics["score"] == "top1"
    (bank,) = said(result, "is the bank")
    assert "1198 images with labels, of which 8 are calibration images too" in bank
    assert said(result, "top-1 of features") == ["top-1 of features: 20 nearest neighbours among 1198 bank images"]
    assert said(result, "calibration.loss") == [
        "calibration.loss kl is that of classes; the task features takes cosine"
    ]


@pytest.mark.slow
def test_images_without_labels_are_judged_by_cosine_and_compared(tmp_path: Path) -> None:
    for index in range(12):
        Image.new("L", (8, 8), 20 * index).save(tmp_path / f"{index}.png")
    images = {"source": "folder", "path": str(tmp_path)}
    results = [judged(tmp_path / f"run{bits}", bits, images) for bits in (8, 3)]
    assert "quantized.top1" not in results[0].metrics
    assert results[0].metrics["quantized.cosine"] > 0.99 > results[1].metrics["quantized.cosine"]
    assert said(results[0], "no example has a label")
    (found,) = group([read_run(tmp_path / f"run{bits}") for bits in (8, 3)])
    assert (found.score_title, found.float_score, found.float_at_chance) == ("cosine", 1.0, False)
    assert found.rows[0].against(found.rows[1]).p < 0.01
    assert found.ties == ["", ""]


def test_a_loss_of_another_task_is_refused() -> None:
    with pytest.raises(InputError, match="expected a loss of the task features, cosine or squared") as error:
        judged(calibration={"loss": "cross_entropy"})
    assert error.value.where == "calibration.loss"


def test_a_bank_that_holds_evaluation_images_is_refused() -> None:
    with pytest.raises(InputError, match="share 60 examples"):
        judged(training={"source": "digits", "split": "test"})
