"""Sites, norm groups and multiply-accumulates of typical models."""

from collections import Counter

import pytest
import torch
from numeric_toys import Sequence, deit, mixer, sited, swin, vit
from torch import nn
from torch.nn import functional as F

from qplug import SiteKind
from qplug.core.types import Smoothing
from qplug.models.attention import MatMul
from qplug.models.smoothing import fold
from qplug.quantization.sites import find_sites

K = SiteKind


def by_name(found):
    return {site.name: site for site in found.sites}


def kinds(found):
    return Counter(site.kind for site in found.sites)


def test_vit():
    _, found = sited(vit())
    assert kinds(found) == {
        **{
            K.LINEAR_WEIGHT: 9,
            K.CONV_WEIGHT: 1,
            K.CONV_INPUT: 1,
            K.LINEAR_INPUT: 3,
            K.POST_LAYERNORM: 4,
            K.POST_GELU: 2,
        },
        **{K.QUERY: 2, K.KEY: 2, K.POST_SOFTMAX: 2, K.VALUE: 2, K.SOFTMAX_INPUT: 2, K.LAYERNORM_INPUT: 5},
    }
    sites = by_name(found)
    assert len(sites) == len(found.sites)
    expected = {
        "patch_embed.proj.weight": (K.CONV_WEIGHT, (48, 3, 8, 8), 0, None),
        "patch_embed.proj.input": (K.CONV_INPUT, (3, 32, 32), -3, None),
        "blocks.0.attn.qkv.weight": (K.LINEAR_WEIGHT, (144, 48), 0, None),
        "blocks.0.attn.qkv.input": (K.POST_LAYERNORM, (17, 48), -1, None),
        "blocks.0.attn.matmul_qk.lhs": (K.QUERY, (3, 17, 16), -1, -3),
        "blocks.0.attn.matmul_qk.rhs": (K.KEY, (3, 17, 16), -1, -3),
        "blocks.0.attn.softmax.input": (K.SOFTMAX_INPUT, (3, 17, 17), -1, -3),
        "blocks.0.attn.matmul_av.lhs": (K.POST_SOFTMAX, (3, 17, 17), -1, -3),
        "blocks.0.attn.matmul_av.rhs": (K.VALUE, (3, 17, 16), -1, -3),
        "blocks.0.attn.proj.input": (K.LINEAR_INPUT, (17, 48), -1, None),
        "blocks.0.mlp.fc1.input": (K.POST_LAYERNORM, (17, 48), -1, None),
        "blocks.1.mlp.fc2.input": (K.POST_GELU, (17, 192), -1, None),
        "blocks.1.norm2.input": (K.LAYERNORM_INPUT, (17, 48), -1, None),
        "head.input": (K.LINEAR_INPUT, (48,), -1, None),
    }
    for name, (kind, shape, channels, heads) in expected.items():
        site = sites[name]
        assert (site.kind, site.shape, site.channel_axis, site.head_axis) == (kind, shape, channels, heads), name
    assert sites["blocks.1.mlp.fc1.input"].source == "blocks.1.norm2"
    assert sites["head.input"].source is None
    order = [s.name for s in found.sites if s.module.startswith("blocks.0.attn")]
    assert order.index("blocks.0.attn.qkv.input") < order.index("blocks.0.attn.softmax.input")
    assert order.index("blocks.0.attn.softmax.input") < order.index("blocks.0.attn.proj.weight")


def test_macs_equal_a_count_by_hand():
    tokens, dim, heads = 17, 48, 3
    _, found = sited(vit())
    sites = by_name(found)
    assert sites["patch_embed.proj.weight"].macs == sites["patch_embed.proj.input"].macs == 16 * dim * 3 * 64
    assert sites["blocks.0.attn.qkv.weight"].macs == tokens * dim * 3 * dim
    assert sites["blocks.0.attn.matmul_qk.lhs"].macs == heads * tokens * tokens * (dim // heads)
    assert sites["blocks.0.attn.matmul_av.rhs"].macs == heads * tokens * tokens * (dim // heads)
    assert sites["blocks.0.attn.softmax.input"].macs == sites["blocks.0.norm1.input"].macs == 0
    block = tokens * dim * (3 * dim + dim + 8 * dim) + 2 * tokens * tokens * dim
    assert found.total_macs == 16 * dim * 192 + 2 * block + dim * 5
    assert found.uncovered_macs == {}


def test_groups_of_vit_are_norm1_qkv_and_norm2_fc1():
    _, found = sited(vit())
    assert found.groups == {
        **{f"blocks.{i}.norm1": (f"blocks.{i}.attn.qkv",) for i in range(2)},
        **{f"blocks.{i}.norm2": (f"blocks.{i}.mlp.fc1",) for i in range(2)},
    }


def test_qk_norm_is_no_group():
    _, found = sited(vit(qk_norm=True, depth=1))
    assert set(found.groups) == {"blocks.0.norm1", "blocks.0.norm2"}
    assert by_name(found)["blocks.0.attn.matmul_qk.rhs"].kind is K.KEY


def test_deit():
    _, found = sited(deit())
    sites = by_name(found)
    assert sites["blocks.0.attn.qkv.input"].shape == (18, 48)
    assert {"head.weight", "head_dist.weight"} <= set(sites)
    assert found.groups == {"blocks.0.norm1": ("blocks.0.attn.qkv",), "blocks.0.norm2": ("blocks.0.mlp.fc1",)}
    assert found.uncovered_macs == {}


def test_swin():
    model, found = sited(swin())
    sites = by_name(found)
    assert sites["layers.0.blocks.1.attn.qkv.input"].shape == (16, 16, 12)  # windows stay an axis of one image
    assert sites["layers.0.blocks.1.attn.matmul_av.lhs"].kind is K.POST_SOFTMAX
    assert sites["layers.0.blocks.1.attn.matmul_av.lhs"].shape == (16, 2, 16, 16)
    assert sites["layers.1.downsample.reduction.input"].kind is K.POST_LAYERNORM
    assert found.groups == {
        "layers.1.downsample.norm": ("layers.1.downsample.reduction",),
        **{f"layers.{i}.blocks.{j}.norm1": (f"layers.{i}.blocks.{j}.attn.qkv",) for i in range(2) for j in range(2)},
        **{f"layers.{i}.blocks.{j}.norm2": (f"layers.{i}.blocks.{j}.mlp.fc1",) for i in range(2) for j in range(2)},
    }
    assert found.uncovered_macs == {}
    groups = {group.norm: group for group in found.norm_groups(model)}
    assert groups["layers.1.downsample.norm"].weights[0].shape == (24, 48)
    assert not groups["layers.1.downsample.norm"].weights[0].requires_grad


@pytest.mark.parametrize("width", [24, 16])
def test_mixers_token_mlp_cannot_be_smoothed(width):
    """MLP-Mixer transposes channels; at a width of 16, tokens and channels are equally many."""
    _, found = sited(mixer(embed_dim=width))
    assert found.groups == {f"blocks.{i}.norm2": (f"blocks.{i}.mlp_channels.fc1",) for i in range(2)}
    token = by_name(found)["blocks.0.mlp_tokens.fc1.input"]
    assert (token.shape, token.source, token.kind) == ((width, 16), None, K.POST_LAYERNORM)
    assert by_name(found)["blocks.0.mlp_tokens.fc2.input"].kind is K.POST_GELU


def test_a_convolutional_network():
    from timm.models.resnet import BasicBlock, ResNet

    torch.manual_seed(0)
    model = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=5, channels=(8, 8, 16, 16), stem_width=8).eval()
    _, found = sited(model)
    convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert kinds(found)[K.CONV_WEIGHT] == kinds(found)[K.CONV_INPUT] == len(convolutions)
    assert found.groups == {}
    assert found.uncovered_macs == {}
    assert found.total_macs == sum(site.macs for site in found.sites if site.kind.is_weight)


def test_channels_first_norms_are_not_layernorms():
    from timm.models.convnext import ConvNeXt

    model = ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=5).eval()
    _, found = sited(model, torch.randn(1, 3, 64, 64))
    norms = [site for site in found.sites if site.kind is K.LAYERNORM_INPUT]
    assert {site.module for site in norms} == {f"stages.{i}.blocks.0.norm" for i in range(4)}
    assert [site.shape[-1] for site in norms] == [8, 16, 24, 32]


def test_grouped_convolutions_count_their_own_channels():
    conv = nn.Conv2d(4, 8, 3, padding=1, groups=4)
    found = find_sites(nn.Sequential(conv), torch.randn(1, 4, 5, 5))
    assert found.sites[0].macs == found.total_macs == 8 * 25 * 9


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(x).view(x.shape[0], x.shape[1], 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_unread_attention_is_named_as_uncovered():
    model = nn.Sequential(nn.Linear(8, 8), Fused()).eval()
    found = find_sites(model, torch.randn(1, 6, 8))
    assert found.uncovered_macs == {"1": 2 * 6 * 6 * 8}
    assert found.total_macs == 6 * 8 * (8 + 24 + 8) + 2 * 6 * 6 * 8


def test_only_operands_of_four_axes_have_heads():
    for axes, head_axis in (((6,), None), ((2, 6), -3), ((2, 3, 6), None)):
        model = Sequence(
            lambda m, x: m.p(m.s(m.q(x, x)), x), q=MatMul(transpose_rhs=True), s=nn.Softmax(-1), p=MatMul()
        )
        found = find_sites(model, torch.randn(1, *axes, 8))
        assert {site.head_axis for site in found.sites} == {head_axis}


def test_macs_outside_every_module_belong_to_the_model():
    model = Sequence(lambda m, x: m.a(x) @ torch.ones(8, 3), a=nn.Linear(8, 8))
    assert find_sites(model, torch.randn(1, 6, 8)).uncovered_macs == {"(model)": 6 * 8 * 3}


def test_float_macs_count_an_operation_unless_both_operands_are_quantized():
    _, found = sited(vit(depth=1))
    everything = {site.name for site in found.sites}
    assert found.float_macs(everything) == {}
    fc1 = 17 * 48 * 192
    assert found.float_macs(everything - {"blocks.0.mlp.fc1.weight"}) == {"blocks.0.mlp.fc1": fc1}
    assert found.float_macs(everything - {"blocks.0.mlp.fc1.input"}) == {"blocks.0.mlp.fc1": fc1}
    assert found.float_macs(everything - {"blocks.0.attn.softmax.input"}) == {}
    assert sum(found.float_macs(set()).values()) == found.total_macs


OTHER_READERS = {
    "a residual": lambda m, x: (y := m.n(x), m.a(y) + y)[1],
    "concatenation": lambda m, x: (y := m.n(x), torch.cat([m.a(y), y], -1))[1],
    "a pooled head": lambda m, x: (y := m.n(x), m.a(y).mean() + y[:, 0].mean())[1],
    "a matrix by attribute": lambda m, x: (y := m.n(x), m.a(y).sum() + y.mT.mean())[1],
    "an activation": lambda m, x: (y := m.n(x), m.a(y) + m.g(y))[1],
    "a softmax": lambda m, x: (y := m.n(x), m.a(y) + m.s(y))[1],
    "another norm": lambda m, x: (y := m.n(x), m.a(y) + m.o(y))[1],
    "the output": lambda m, x: (y := m.n(x), m.a(y), y)[2],
    "a linear along another axis": lambda m, x: (y := m.n(x), m.a(y).mean() + m.t(y.transpose(1, 2)).mean())[1],
    "a linear shared with another input": lambda m, x: m.a(m.n(x)) + m.a(x),
    "a linear shared with another norm": lambda m, x: m.a(m.n(x)) + m.a(m.o(x)),
}


def reader(function):
    torch.manual_seed(0)
    return Sequence(
        function,
        **{"n": nn.LayerNorm(8), "o": nn.LayerNorm(8), "a": nn.Linear(8, 8), "b": nn.Linear(8, 8)},
        **{"t": nn.Linear(6, 8), "g": nn.GELU(), "s": nn.Softmax(-1)},
    )


@pytest.mark.parametrize("what", OTHER_READERS)
def test_a_norm_with_another_reader_is_no_group(what):
    with torch.no_grad():
        assert find_sites(reader(OTHER_READERS[what]), torch.randn(1, 6, 8)).groups == {}


GROUPS = {
    "two linears": (lambda m, x: (y := m.n(x), m.a(y) + m.b(y))[1], {"n": ("a", "b")}),
    "through windows": (lambda m, x: m.a(m.n(x).view(1, 2, 3, 8).transpose(1, 2).contiguous()), {"n": ("a",)}),
    "through dropout and padding of nothing": (
        lambda m, x: m.a(F.pad(F.dropout(m.n(x), 0.1, False), (0, 0))),
        {"n": ("a",)},
    ),
    "one linear twice": (lambda m, x: (y := m.n(x), m.a(y) + m.a(y))[1], {"n": ("a",)}),
}


@pytest.mark.parametrize("what", GROUPS)
def test_groups_can_be_folded(what):
    function, groups = GROUPS[what]
    model, x = reader(function), torch.randn(1, 6, 8)
    found = find_sites(model, x)
    assert found.groups == groups
    before = model(x)
    for group in found.norm_groups(model):
        fold(model, group, Smoothing(torch.randn(8), torch.rand(8) + 0.5))
    assert torch.allclose(model(x), before, atol=1e-5)


def test_padding_excludes_a_group():
    model = reader(lambda m, x: m.a(F.pad(m.n(x), (0, 0, 0, 1))))
    assert find_sites(model, torch.randn(1, 6, 8)).groups == {}


def test_a_module_called_twice_has_its_sites_once_and_all_its_macs():
    found = find_sites(reader(lambda m, x: m.a(m.a(x))), torch.randn(1, 6, 8))
    assert [site.name for site in found.sites] == ["a.weight", "a.input"]
    assert found.total_macs == 2 * 6 * 8 * 8
    assert {site.macs for site in found.sites} == {2 * 6 * 8 * 8}
    assert found.uncovered_macs == {}


def test_modules_in_a_list_are_counted_once():
    """The list itself has no forward, so the counter has no entry for it."""
    model = reader(lambda m, x: m.all[1](m.all[0](x)))
    model.all = nn.ModuleList([nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8))])
    found = find_sites(model, torch.randn(1, 6, 8))
    assert found.total_macs == 2 * 6 * 8 * 8
    assert found.uncovered_macs == {}


def test_no_hook_remains_on_the_model():
    model, _ = sited(vit(depth=1))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
