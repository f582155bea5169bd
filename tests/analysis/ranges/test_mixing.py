"""Which weights mix tokens and which channels, and the traces of each group."""

from __future__ import annotations

import pytest
import torch
from mlp_toys import convmixer, resmlp
from numeric_toys import mixer, sited
from torch import nn

from qplug import InputError
from qplug.analysis.ranges.depth import find_depth
from qplug.analysis.ranges.mixing import mixers, mixing_traces
from qplug.models.blocks import BLOCKS
from qplug.testing import toy_images, toy_vit


def grouped(model, image, **patterns):
    model, found = sited(model, image)
    depth = find_depth(model, list(dict.fromkeys(site.module for site in found.sites)), image, BLOCKS)
    return model, depth, mixers(model, found.sites, depth, **patterns)


def test_mixers_of_every_family():
    image = torch.randn(1, 3, 16, 16)
    assert grouped(resmlp(), image)[2] == {
        ("blocks.0", "token"): ("blocks.0.linear_tokens",),
        ("blocks.0", "channel"): ("blocks.0.mlp_channels.fc1", "blocks.0.mlp_channels.fc2"),
        ("blocks.1", "token"): ("blocks.1.linear_tokens",),
        ("blocks.1", "channel"): ("blocks.1.mlp_channels.fc1", "blocks.1.mlp_channels.fc2"),
    }
    found = grouped(mixer(), torch.randn(1, 3, 32, 32))[2]
    assert found["blocks.0", "token"] == ("blocks.0.mlp_tokens.fc1", "blocks.0.mlp_tokens.fc2")
    found = grouped(convmixer(), image)[2]
    assert found["blocks.0", "token"] == ("blocks.0.0.fn.0",)  # depthwise
    assert found["blocks.0", "channel"] == ("blocks.0.1",)  # 1×1
    found = grouped(toy_vit(), toy_images(1))[2]
    assert found["blocks.1", "token"] == ("blocks.1.attn.qkv", "blocks.1.attn.proj")
    assert found["blocks.1", "channel"] == ("blocks.1.mlp.fc1", "blocks.1.mlp.fc2")


def test_patterns_select_operations_and_a_model_without_mixers_is_refused():
    found = grouped(resmlp(), torch.randn(1, 3, 16, 16), tokens=["*.fc1"], channels=["head"])[2]
    assert found["blocks.0", "token"] == ("blocks.0.mlp_channels.fc1",)
    assert found["head", "channel"] == ("head",)
    plain = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(392, 4)).eval()
    with pytest.raises(InputError, match="that mix tokens, found none") as caught:
        grouped(plain, torch.randn(1, 3, 16, 16))
    assert "--token-mixing PATTERN" in caught.value.fix
    with pytest.raises(InputError, match="that mix channels, found none") as caught:
        grouped(plain, torch.randn(1, 3, 16, 16), tokens=["2"])
    assert "--channel-mixing PATTERN" in caught.value.fix


def test_a_mixers_trace_is_the_sum_over_its_weights_and_biases():
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model, depth, groups = grouped(resmlp(embed_dim=6), images[:1])
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))  # timm's is zero
    for block in model.blocks:  # nor do blocks matter beside what they are added to
        block.ls1.data.fill_(1.0)
        block.ls2.data.fill_(1.0)
    found = {(one.block, one.role): one for one in mixing_traces(model, groups, depth, [images], probes=2)}
    mlp = found["blocks.1", "channel"]
    assert mlp.position == 1.0
    names = [f"blocks.1.mlp_channels.{layer}.{key}" for layer in ("fc1", "fc2") for key in ("weight", "bias")]
    assert mlp.trace.parameters == sum(model.get_parameter(name).numel() for name in names)
    exact = _exact(model, names, images)
    only = {key: names for key, names in groups.items() if key == ("blocks.1", "channel")}
    trace = mixing_traces(model, only, depth, [images], probes=300)[0].trace
    assert abs(trace.value - exact) < 4 * trace.standard_error
    assert trace.standard_error < 0.2 * abs(exact)


def _exact(model, names, images):
    """The trace of the Hessian's blocks in float64."""
    from torch.autograd.functional import hessian
    from torch.func import functional_call

    from qplug.quantization.calibration.hessian import OWN_TOP1

    model, images = model.double(), images.double()
    total = 0.0
    for name in names:
        value = model.get_parameter(name).detach()
        block = hessian(lambda w, n=name: OWN_TOP1(functional_call(model, {n: w}, (images,))) / len(images), value)
        total += float(block.reshape(value.numel(), value.numel()).trace())
    model.float()
    return total
