"""BERT and DistilBERT: tokens in, their own attention masks, answers masked at padding."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from text_toys import KINDS, TASKS, recipe_of

import qplug


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "task"), list(zip(KINDS, TASKS, strict=True)))
def test_language_models_agree(small_language: Path, tmp_path: Path, kind: str, task: str) -> None:
    recipe = recipe_of(small_language, kind, task, 4, [{"use": "baseline.minmax"}])
    qplug.run(recipe, out=tmp_path / "run")
    result = qplug.export_run(tmp_path / "run", images=8)
    assert result.parity.first_wrong is None
    assert result.parity.agreeing == 8
    said = {entry.key: entry.value for entry in onnx.load(result.path).metadata_props}
    assert '"kind": "Tokenization"' in said["qplug.preprocessing"]
    assert '"max_length": 16' in said["qplug.preprocessing"]
