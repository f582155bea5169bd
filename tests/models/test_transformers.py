"""BERT and DistilBERT: the same outputs as transformers, no influence of padding, and errors for invalid inputs."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from qplug.core.errors import InputError
from qplug.core.types import MASKED, SiteKind
from qplug.data.text import TextItem
from qplug.models.adapters import ADAPTERS, make_explicit
from qplug.models.float_model import FloatModel
from qplug.models.transformers import TransformersModel
from qplug.quantization.calibration.calibrator import Calibration
from qplug.quantization.sites import find_sites

KINDS = ("bert", "distilbert")
TASKS = ("sequence_classification", "question_answering")
BOTH = [(kind, task) for kind in KINDS for task in TASKS]
ITEMS = [TextItem("alpha", "beta gamma"), TextItem("delta", "alpha beta delta mu mu kappa"), TextItem("eta", "eta")]


def source(folder: Path | str, task: str = "sequence_classification", length: int = 16) -> TransformersModel:
    values = {"source": "transformers", "path": str(folder), "task": task, "max_length": length}
    return TransformersModel(TransformersModel.Config(**values))


def batch(model: FloatModel) -> torch.Tensor:
    transform = model.preprocessing.transform()
    return torch.stack([transform(item) for item in ITEMS])


def originals(folder: Path, tokens: torch.Tensor) -> Any:
    """The output of transformers' own model for the same tokens."""
    import transformers

    task = "QuestionAnswering" if "question" in folder.name else "SequenceClassification"
    model = getattr(transformers, f"AutoModelFor{task}").from_pretrained(folder).eval()
    types = {"token_type_ids": tokens[:, 2]} if model.config.model_type == "bert" else {}
    with torch.no_grad():
        return model(input_ids=tokens[:, 0], attention_mask=tokens[:, 1], **types)


@pytest.mark.parametrize(("kind", "task"), BOTH)
def test_logits_are_those_of_transformers(small_language: Path, kind: str, task: str) -> None:
    folder = small_language / f"{kind}-{task}"
    model = source(folder, task).load()
    tokens = batch(model)
    with torch.no_grad():
        logits = model.module(tokens)
    expected = originals(folder, tokens)
    if task == "sequence_classification":
        torch.testing.assert_close(logits, expected.logits, rtol=1e-5, atol=1e-6)
        return
    padding = (tokens[:, 1:2] == 0).expand(-1, 2, -1)
    expected = torch.stack([expected.start_logits, expected.end_logits], 1)
    torch.testing.assert_close(logits[~padding], expected[~padding], rtol=1e-5, atol=1e-6)
    assert (logits[padding] == MASKED).all()


@pytest.mark.parametrize(("kind", "task"), BOTH)
def test_padding_has_no_influence(small_language: Path, kind: str, task: str) -> None:
    """Logits and statistics equal those of each text alone without padding."""
    folder = small_language / f"{kind}-{task}"
    model = source(folder, task, 24).load()
    tokens = batch(model)
    lengths = tokens[:, 1].sum(1).tolist()
    alone = [tokens[i : i + 1, :, :length] for i, length in enumerate(lengths)]
    with torch.no_grad():
        together = model.module(tokens)
        for i, text in enumerate(alone):
            expected = model.module(text)
            torch.testing.assert_close(together[i : i + 1, ..., : expected.shape[-1]], expected, rtol=1e-5, atol=1e-6)
    make_explicit(model.module, ADAPTERS, model.preprocessing.example())
    site_map = find_sites(model.module, model.preprocessing.example())
    sites = [s for s in site_map.sites if s.role in ("input", "lhs") and s.kind is not SiteKind.POST_SOFTMAX]
    padded = Calibration(model.module, sites, len(ITEMS), seed=0)
    padded.collect([tokens])
    sites = [s for s in sites if s.kind is not SiteKind.SOFTMAX_INPUT]  # its channels are tokens: their number differs
    for i, text in enumerate(alone):
        single = Calibration(model.module, sites, 1, seed=0)
        single.collect([text])
        for site in sites:
            actual, expected = padded.stats(site), single.stats(site)
            torch.testing.assert_close(actual.image_min[i], expected.image_min[0], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(actual.image_max[i], expected.image_max[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kind", "task"), BOTH)
def test_every_mac_has_a_site(small_language: Path, kind: str, task: str) -> None:
    model = source(small_language / f"{kind}-{task}", task).load()
    image = model.preprocessing.example()
    with torch.no_grad():
        before = model.module(image)
    replaced = make_explicit(model.module, ADAPTERS, image)
    assert len(replaced) == 2
    assert all(name.endswith("attention.self" if kind == "bert" else "attention") for name in replaced)
    with torch.no_grad():
        torch.testing.assert_close(model.module(image), before, rtol=0, atol=0)
    site_map = find_sites(model.module, image)
    assert site_map.uncovered_macs == {}
    kinds = [site.kind for site in site_map.sites]
    for kind_, count in ((SiteKind.QUERY, 2), (SiteKind.KEY, 2), (SiteKind.POST_SOFTMAX, 2), (SiteKind.VALUE, 2)):
        assert kinds.count(kind_) == count
    assert kinds.count(SiteKind.POST_GELU) == 2
    assert kinds.count(SiteKind.SOFTMAX_INPUT) == 2
    assert kinds.count(SiteKind.LAYERNORM_INPUT) == 5
    linears = 2 * 6 + {"sequence_classification": 2, "question_answering": 1}[task]
    assert kinds.count(SiteKind.LINEAR_WEIGHT) == linears
    # Norms follow the residual addition and also feed the next one; only a head that reads every token is alone.
    groups = {"question_answering": [("model.qa_outputs",)], "sequence_classification": []}[task]
    assert list(site_map.groups.values()) == groups


def test_the_softmaxs_input_does_not_hold_the_mask(small_language: Path) -> None:
    model = source(small_language / "bert-sequence_classification").load()
    make_explicit(model.module, ADAPTERS, model.preprocessing.example())
    sites = find_sites(model.module, model.preprocessing.example()).sites
    calibration = Calibration(model.module, sites, len(ITEMS), seed=0)
    calibration.collect([batch(model)])
    for site in sites:
        if site.kind is SiteKind.SOFTMAX_INPUT:
            assert float(calibration.stats(site).min) > -100


def test_attention_of_a_decoder_is_left_alone_and_refused(small_language: Path, tmp_path: Path) -> None:
    import transformers
    from transformers.models.bert.modeling_bert import BertSelfAttention

    config = transformers.BertConfig(hidden_size=8, num_attention_heads=2, is_decoder=True)
    adapter = next(a for a in ADAPTERS if a.path.endswith(":BertSelfAttention"))
    assert adapter.build(BertSelfAttention(config)) is None
    explicit = adapter.build(BertSelfAttention(transformers.BertConfig(hidden_size=8, num_attention_heads=2)).eval())
    with pytest.raises(ValueError, match="encoder's attention, received a decoder's: encoder_hidden_states"):
        explicit(torch.zeros(1, 2, 8), encoder_hidden_states=torch.zeros(1, 2, 8), cache=None)
    folder = shutil.copytree(small_language / "bert-sequence_classification", tmp_path / "decoder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "is_decoder": True}))
    with pytest.raises(InputError, match="the model is a bert as a decoder"):
        source(folder).load()


def test_the_key_depends_on_the_content_and_not_on_the_path(small_language: Path, tmp_path: Path) -> None:
    folder = small_language / "bert-sequence_classification"
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert source(folder).key() == source(copy).key()
    assert source(folder).key() != source(folder, length=17).key()
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    assert source(folder).key() != source(copy).key()


def test_files_give_back_architecture_and_tokenizer(small_language: Path, tmp_path: Path) -> None:
    original = source(small_language / "distilbert-question_answering", "question_answering")
    files = original.files()
    assert {"config.json", "tokenizer.json"} <= set(files)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    loaded, again = original.load(), original.kept_in(tmp_path).architecture()
    assert repr(again.module) == repr(loaded.module)
    assert again.preprocessing == loaded.preprocessing
    assert again.fingerprint != loaded.fingerprint


def test_invalid_models_are_refused(small_language: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small_language / "bert-sequence_classification"
    with pytest.raises(InputError, match=r"not of a BertForQuestionAnswering: missing keys qa_outputs.bias"):
        source(folder, "question_answering").load()
    with pytest.raises(InputError, match="positions for 64 tokens, and max_length is 65"):
        source(folder, length=65).load()
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"the weights cannot be read: .*safetensors"):
        source(copy).load()
    shutil.copy(folder / "config.json", copy / "model.safetensors")
    with pytest.raises(InputError, match="the weights cannot be read"):
        source(copy).load()
    (copy / "config.json").write_text('{"model_type": "roberta"}')
    with pytest.raises(InputError, match="a roberta, and this source supports the encoders bert and distilbert"):
        source(copy).load()
    (copy / "config.json").unlink()
    with pytest.raises(InputError, match=r"config.json cannot be read"):
        source(copy).load()
    with pytest.raises(InputError, match="is a file, not a folder"):
        source(folder / "config.json").load()
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="the tokenizer cannot be read"):
        source(other).load()
    with pytest.raises(ValidationError, match="max_length"):
        source(folder, length=4)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs the package 'transformers'") as error:
        source(folder).load()
    assert error.value.fix == "pip install 'qplug[nlp]'"


def test_a_name_is_fetched_from_the_hub_without_code_or_pickles(
    small_language: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    calls: list[tuple[str, Any, list[str]]] = []

    def snapshot(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        if name == "someone/nothing":
            raise OSError("no such model")
        calls.append((name, revision, allow_patterns))
        return str(small_language / "bert-sequence_classification")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert (
        source("someone/bert").load().fingerprint
        == source(small_language / "bert-sequence_classification").load().fingerprint
    )
    assert {name for name, _, _ in calls} == {"someone/bert"}
    wanted = {pattern for _, _, patterns in calls for pattern in patterns}
    assert "*.safetensors" in wanted
    assert not any(pattern.endswith((".bin", ".py", ".pt", "*")) for pattern in wanted)
    with pytest.raises(InputError, match=r"no model of this name could be fetched \(OSError: no such model\)"):
        source("someone/nothing").load()


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_captured_with_their_masks(small_language: Path, kind: str) -> None:
    from qplug.training.reconstruction.capture import capture

    model = source(small_language / f"{kind}-sequence_classification").load()
    make_explicit(model.module, ADAPTERS, model.preprocessing.example())
    block = {"bert": "model.bert.encoder.layer.1", "distilbert": "model.distilbert.transformer.layer.1"}[kind]
    calls = capture(model.module, block, list(batch(model).split(2)))
    images = torch.tensor([2, 0])
    args, kwargs = calls.arguments(calls.inputs[images], images)
    with torch.no_grad():
        again = model.module.get_submodule(block)(*args, **kwargs)
    torch.testing.assert_close(again, calls.outputs[images], rtol=1e-5, atol=1e-6)
