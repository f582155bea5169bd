"""Language models through the whole house: the same recipe, run folder and comparison as images have."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from text_toys import ANSWERS, KINDS, LENGTH, TASKS, recipe_of

from qplug import InputError, load_quantized, run
from qplug.analysis.compare.rows import group
from qplug.core.task import CLASSIFICATION, QuestionAnswering
from qplug.data.loading import prepared
from qplug.data.text import Text
from qplug.hooks.registry import installed
from qplug.models.transformers import TransformersModel
from qplug.pipeline.read_run import read_run

MINMAX = [{"use": "baseline.minmax"}]
HESSIAN = [{"use": "baseline.hessian"}]


def learned(kind: str, use: str, **values: Any) -> list[dict[str, Any]]:
    """Reconstruction with the paper's batches for this kind of model, and the ranges that it starts from."""
    steps = [{"use": use, "batch_size": {"bert": 12, "distilbert": 8}[kind], **values}]
    return steps + ([{"use": "mr_biq.binary_coding"}] if use.startswith("mr_biq") else []) + [{"use": "baseline.mse"}]


def predictions(folder: Path, language: Path, task: str, length: int) -> torch.Tensor:
    """Top-1 of the run folder's model on the evaluation texts, with the tokenizer that the folder keeps."""
    values = {"source": "transformers", "path": str(folder), "task": task, "max_length": length}
    transform = TransformersModel(TransformersModel.Config(**values)).architecture().preprocessing.transform()
    columns = ANSWERS if task == "question_answering" else {}
    texts = Text(Text.Config(source="text", path=str(language / "texts"), split="test", **columns)).open(0)
    model = load_quantized(folder)
    judge = QuestionAnswering() if task == "question_answering" else CLASSIFICATION
    with torch.no_grad():
        return torch.cat([judge.predictions(model(tokens)) for tokens in prepared(texts, transform, 8)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", TASKS)
def test_a_run_folder_gives_back_the_model_without_the_original(
    small_language: Path, tmp_path: Path, kind: str, task: str
) -> None:
    language = shutil.copytree(small_language, tmp_path / "language")
    recipe = recipe_of(language, kind, task, 2, learned(kind, "mr_biq.reconstruct", iterations=3))
    result = run(recipe, out=tmp_path / "run")
    assert result.metrics["coverage.macs"] == 1.0
    shutil.rmtree(language / f"{kind}-{task}")
    found = read_run(tmp_path / "run")
    assert predictions(tmp_path / "run", language, task, 16).tolist() == found.evaluation["quantized.top1"].tolist()


def test_what_is_lost_and_what_stays_in_float_is_said(small_language: Path) -> None:
    result = run(recipe_of(small_language, "bert", "question_answering", 8, MINMAX, length=12))
    assert "3 embedding tables stay in float32, 0.0 MB: they are looked up, without MACs" in result.warnings
    cut = [warning for warning in result.warnings if warning.startswith("evaluation data: ")]
    assert [warning.partition(": ")[2].partition(" ")[2] for warning in cut] == [
        "texts were cut to max_length, 12 tokens",
        "answers are not within the first 12 tokens, and count as wrong",
    ]


def test_labels_of_another_task_are_refused(small_language: Path) -> None:
    recipe = recipe_of(small_language, "bert", "sequence_classification", 8, MINMAX)
    other = recipe_of(small_language, "bert", "question_answering", 8, MINMAX)
    with pytest.raises(InputError, match="the model predicts answers to questions, and the labels are classes"):
        run(recipe.model_copy(update={"model": other.model}))


def test_scopes_smoothing_and_traces_take_texts(small_language: Path) -> None:
    """What has no text in mind: Softmax and LayerNorm in scope, smoothing, each site alone and second derivatives."""
    from qplug.analysis.sensitivity.measure import SensitivityRequest, measure

    smooth = [{"use": "smoothing.smooth_quant"}, *MINMAX]
    values = recipe_of(small_language, "distilbert", "question_answering", 8, smooth).dump()
    values["quantize"]["scope"] = {"softmax": True, "layernorm": True}
    recipe = type(recipe_of(small_language, "bert", TASKS[0], 8, MINMAX)).model_validate(values)
    result = run(recipe)
    assert [change.where for change in result.plan.changes] == [
        "model.distilbert.transformer.layer.1.output_layer_norm"
    ]
    assert result.plan.float_sites == {}
    assert result.metrics["quantized.logit_sqnr_db"] > 15
    registry = installed()
    data = [registry.datasets["text"](config) for config in (recipe.data.calibration, recipe.data.evaluation)]
    origin, ranges = registry.models["transformers"](recipe.model), registry.techniques["baseline.minmax"]
    request = SensitivityRequest(bits=(4,), hessian_probes=1, match=("*qa_outputs*",))
    found = measure(origin, *data, [ranges(ranges.Config(use="baseline.minmax"))], request)
    assert [one.site.role for one in found.sites] == ["weight", "input"]
    assert found.sites[0].trace.value != 0
    assert 0 < found.sites[0].effect.logit_sqnr_db < 60


def test_a_promise_is_held_to_real_tokens(small_language: Path) -> None:
    """The logits of padding are the lowest float32: beside them any change would seem small."""
    from qplug.data.text import TextItem
    from qplug.models.equivalence import EquivalenceCheck

    recipe = recipe_of(small_language, "bert", "question_answering", 8, MINMAX)
    model = TransformersModel(recipe.model).load()
    tokens = model.preprocessing.transform()(TextItem("alpha", "alpha beta"))[None]
    guard = EquivalenceCheck(model.module, tokens)
    assert guard.error() == 0.0
    model.module.model.qa_outputs.weight.mul_(1.5)
    assert 0.2 < guard.error() < 0.8


def test_runs_on_texts_can_be_compared(small_language: Path, tmp_path: Path) -> None:
    folders = []
    for name, bits in (("a", 8), ("b", 2)):
        run(recipe_of(small_language, "distilbert", "question_answering", bits, MINMAX), out=tmp_path / name)
        folders.append(read_run(tmp_path / name))
    (found,) = group(folders)
    assert found.model == "distilbert-question_answering"
    assert found.images == 12
    assert found.score_title == "F1"
    assert [row.by_example.shape for row in found.rows] == [(1, 12), (1, 12)]
    assert found.rows[0].by_example.mean() == pytest.approx(folders[0].metrics["quantized.f1"])


@pytest.mark.real
@pytest.mark.parametrize(("kind", "task"), list(zip(KINDS, TASKS, strict=True)))
def test_trained_models_keep_what_their_bits_allow(
    trained_language: Path, tmp_path: Path, kind: str, task: str
) -> None:
    """Reconstruction at 2 bits gives back most of what codes alone lose; 8 bits lose nothing to speak of.

    Measured on 497 docstrings, 256 others to calibrate, 40 tokens: top-1 or exact match, %; agreement, %; SQNR, dB. The
    test runs the first and the last column.

    | | BERT, classes | BERT, answers | DistilBERT, classes | DistilBERT, answers |
    |---|---|---|---|---|
    | float | 64.4 | 72.0 | 62.4 | 59.8 |
    | W8A8 min-max | 64.6 · 99.6 · 43.7 | 72.2 · 98.6 · 48.5 | 62.0 · 99.4 · 44.6 | 59.6 · 99.0 · 47.5 |
    | W4A8 Hessian | 64.6 · 98.4 · 34.9 | 71.6 · 96.6 · 36.0 | 62.4 · 99.0 · 33.3 | 59.6 · 97.8 · 36.5 |
    | W2A8 MSE | 63.8 · 95.4 · 14.3 | 56.5 · 67.2 · 15.0 | 64.4 · 92.0 · 9.9 | 37.8 · 52.3 · 13.3 |
    | W2A8 BRECQ | 64.0 · 96.0 · 17.9 | 63.0 · 77.5 · 19.5 | 63.0 · 94.6 · 14.3 | 48.7 · 67.2 · 17.9 |
    | W2A8 codes | 64.4 · 95.8 · 17.3 | 59.6 · 74.4 · 15.8 | 62.4 · 94.4 · 12.6 | 45.5 · 64.6 · 14.5 |
    | W2A8 Mr.BiQ | 63.8 · 97.6 · 22.5 | 71.0 · 93.0 · 28.4 | 63.0 · 97.6 · 22.9 | 59.2 · 91.8 · 27.3 |
    """
    found = {}
    for name, bits, steps in (
        ("W8A8 min-max", 8, MINMAX),
        ("W4A8 Hessian", 4, HESSIAN),
        ("W2A8 MSE", 2, [{"use": "baseline.mse"}]),
        ("W2A8 BRECQ", 2, learned(kind, "brecq.brecq", iterations=300)),
        ("W2A8 codes", 2, [{"use": "mr_biq.binary_coding"}, {"use": "baseline.mse"}]),
        ("W2A8 Mr.BiQ", 2, learned(kind, "mr_biq.reconstruct", iterations=300)),
    ):
        recipe = recipe_of(trained_language, kind, task, bits, steps, length=LENGTH, examples=256)
        found[name] = run(recipe, out=tmp_path / name).metrics
    chance = {"sequence_classification": 0.2, "question_answering": 0.02}[task]
    assert found["W8A8 min-max"]["float.top1"] > chance + 0.3
    assert found["W8A8 min-max"]["quantized.agreement"] > 0.9
    assert found["W4A8 Hessian"]["quantized.agreement"] > 0.7
    for learned_by, start in (("W2A8 BRECQ", "W2A8 MSE"), ("W2A8 Mr.BiQ", "W2A8 codes")):
        assert found[learned_by]["quantized.logit_sqnr_db"] > found[start]["quantized.logit_sqnr_db"] + 1
        assert found[learned_by]["quantized.agreement"] > found[start]["quantized.agreement"]
    said = predictions(tmp_path / "W2A8 Mr.BiQ", trained_language, task, LENGTH)
    assert said.tolist() == read_run(tmp_path / "W2A8 Mr.BiQ").evaluation["quantized.top1"].tolist()
