"""Models of Hugging Face transformers in memory: batches are dicts, and outputs are theirs."""

import pytest
import torch

import qplug

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
FAST = {
    "quantize": {"weights": {"bits": 8}, "activations": {"bits": 8, "symmetric": False}},
    "techniques": [{"use": "baseline.minmax"}],
}


def images(count=4):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


@pytest.fixture(scope="module")
def vit():
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=5, **SMALL)
    return seeded(lambda: transformers.ViTForImageClassification(config))


@pytest.fixture(scope="module")
def result(vit):
    batch = {"pixel_values": images(), "labels": torch.zeros(4, dtype=torch.int64), "head_mask": None}
    return qplug.quantize(vit, [batch], FAST)


def test_a_vit_takes_its_keywords_and_returns_its_logits(vit, result):
    with torch.no_grad():
        wanted, found = vit(pixel_values=images()).logits, result.model(pixel_values=images()).logits
    assert not torch.equal(found, wanted)
    assert (found - wanted).norm() < 0.05 * wanted.norm()
    assert result.metrics["coverage.macs"] == 1.0


def test_an_encoder_with_two_outputs_and_a_text_model_with_two_inputs_are_saved_and_loaded(tmp_path):
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=16, **SMALL)
    bert = seeded(lambda: transformers.BertModel(config))
    batch = {"input_ids": torch.arange(24).reshape(2, 12), "attention_mask": torch.ones(2, 12, dtype=torch.int64)}
    batch["attention_mask"][1, 8:] = 0
    result = qplug.quantize(bert, [batch], FAST)
    loaded = qplug.load_quantized(result.save(tmp_path / "run"), model=bert)
    with torch.no_grad():
        found, wanted, float_ = (model(**batch) for model in (loaded, result.model, bert.eval()))
    for name in ("last_hidden_state", "pooler_output"):
        assert torch.equal(found[name], wanted[name])
        assert (found[name] - float_[name]).norm() < 0.1 * float_[name].norm()


@pytest.mark.slow
def test_a_vit_is_exported_though_export_makes_masks_of_its_own(result, tmp_path):
    export = result.export(tmp_path / "vit.onnx", images=4)
    assert export.parity is not None
    assert export.parity.first_wrong is None
