"""timm's MLP families: every MAC has sites, also transposed linears and depthwise convolutions; the rest is named."""

from __future__ import annotations

import pytest
import torch
from mlp_toys import convmixer, embedded, quantized, resmlp
from numeric_toys import mixer, sited

import qplug
from qplug.analysis.inspect import inspect
from qplug.core.types import SiteKind
from qplug.models.batchnorm import fold_batchnorms
from qplug.models.sources import TimmModel

RELU = "does not read the output of an nn.Conv2d or nn.Linear as it is"


def by_module(found, module):
    return {site.role: site for site in found.sites if site.module == module}


def test_a_token_mlp_reads_tokens_for_every_channel():
    model, found = sited(mixer(embed_dim=24), torch.randn(1, 3, 32, 32))
    assert found.uncovered_macs == {}
    tokens = model.blocks[0].mlp_tokens.fc1.in_features
    hidden = model.blocks[0].mlp_tokens.fc1.out_features
    site = by_module(found, "blocks.0.mlp_tokens.fc1")["input"]
    assert (site.shape, site.macs, site.kind) == ((24, tokens), 24 * tokens * hidden, SiteKind.POST_LAYERNORM)
    assert by_module(found, "blocks.0.mlp_tokens.fc2")["input"].kind is SiteKind.POST_GELU
    assert "blocks.0.norm1" not in found.groups  # transposed: its channels are no columns of fc1
    assert found.groups["blocks.0.norm2"] == ("blocks.0.mlp_channels.fc1",)


def test_a_resmlps_affines_are_no_norms_that_could_be_smoothed():
    _, found = sited(resmlp(), torch.randn(1, 3, 16, 16))
    assert found.uncovered_macs == {}
    assert found.groups == {}
    tokens = by_module(found, "blocks.1.linear_tokens")
    assert (tokens["input"].shape, tokens["input"].macs) == ((8, 16), 8 * 16 * 16)
    assert tokens["weight"].shape == (16, 16)
    assert by_module(found, "blocks.1.mlp_channels.fc1")["input"].kind is SiteKind.LINEAR_INPUT


def test_a_convmixers_convolutions_are_covered_and_its_batchnorms_named():
    model, images = convmixer(), torch.randn(1, 3, 16, 16)
    folding = fold_batchnorms(model, images)
    assert folding.changes == []
    # each reads an activation, and is read across a residual: neither side can take it
    assert folding.left == {
        "stem.2": f"{RELU}, and its own is read by conv2d, add",
        "blocks.0.0.fn.2": f"{RELU}, and its own is read by add",
        "blocks.0.3": f"{RELU}, and its own is read by conv2d, add",
        "blocks.1.0.fn.2": f"{RELU}, and its own is read by add",
        "blocks.1.3": f"{RELU}, and its own is read by adaptive_avg_pool2d",
    }
    _, found = sited(model, images)
    assert found.uncovered_macs == {}
    depthwise = by_module(found, "blocks.0.0.fn.0")
    assert (depthwise["weight"].shape, depthwise["weight"].macs) == ((8, 1, 3, 3), 8 * 16 * 9)
    assert (depthwise["input"].shape, depthwise["input"].channel_axis) == ((8, 4, 4), -3)


@pytest.mark.parametrize("name", ["mixer_digits", "resmlp_digits", "convmixer_digits"])
def test_a_run_covers_every_mac(name):
    result = quantized(embedded(name), images=8)
    assert result.metrics["coverage.macs"] == 1.0
    assert result.metrics["quantized.logit_sqnr_db"] > 20
    left = [site for site in result.plan.float_sites if "input" not in site]
    assert len(left) == (9 if name == "convmixer_digits" else 0)
    said = [warning for warning in result.warnings if "BatchNorms that could not be folded" in warning]
    assert bool(said) == bool(left)


REWRITES = {
    "mixer_digits": "[{use: qmlp.token_mixers, groups: 3}, {use: baseline.ema}]",
    "resmlp_digits": (
        "[{use: qmlp.norm}, {use: qmlp.bounded_activation}, {use: qmlp.token_mixers}, {use: baseline.ema}]"
    ),
    "convmixer_digits": "[{use: qmlp.bounded_activation, alpha: 2.5}, {use: baseline.percentile}]",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REWRITES)
def test_a_run_folder_gives_back_what_was_rewritten(name, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"""
version: 1
model: {{source: zoo, name: {name}}}
data:
  calibration: {{source: digits, split: train, images: 8}}
  evaluation: {{source: digits, split: test, images: 40}}
quantize:
  weights: {{bits: 4}}
  activations: {{bits: 8, symmetric: false, zero_point: float}}
techniques: {REWRITES[name]}
""")
    result = qplug.run(qplug.load_recipe(recipe), out=tmp_path / "run")
    assert result.metrics["coverage.macs"] == 1.0
    again = qplug.load_quantized(tmp_path / "run")
    from safetensors.torch import load_file

    from qplug.data.loading import batches
    from qplug.hooks.registry import component, installed

    images = component(installed().datasets, result.recipe.data.evaluation).open(0)
    transform = component(installed().models, result.recipe.model).load().preprocessing.transform()
    with torch.no_grad():
        top1 = torch.cat([again(pixels).argmax(1) for pixels, _ in batches(images, transform, 32)])
    kept = load_file(tmp_path / "run" / "evaluation.safetensors")
    assert torch.equal(top1.int(), kept["quantized.top1"])
    training = [warning for warning in result.warnings if "training has to make up for it" in warning]
    assert len(training) == {"mixer_digits": 0, "resmlp_digits": 2, "convmixer_digits": 1}[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixer_b16_224", "resmlp_24_224", "convmixer_768_32"])
def test_the_papers_architectures_are_covered(name):
    found = inspect(TimmModel(TimmModel.Config(source="timm", name=name)))
    assert found.coverage == 1.0
    assert found.float_macs == {}
    assert len(found.float_norms) == (65 if name.startswith("conv") else 0)
