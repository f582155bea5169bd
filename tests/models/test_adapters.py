"""Adapters are equivalent to the original module in every variant, and a wrong one is refused."""

import copy

import pytest
import timm
import torch
from timm.layers.attention import Attention
from timm.layers.conv2d_same import Conv2dSame
from timm.models.swin_transformer import SwinTransformer, WindowAttention
from torch import nn

from qplug import Adapter, EquivalenceError
from qplug.models.adapters import ADAPTERS, make_explicit
from qplug.models.attention import ExplicitAttention, ExplicitWindowAttention, MatMul
from qplug.models.layers import SamePad2d, padded_conv
from qplug.testing import toy_images, toy_vit


def close(output, expected):
    return float((output - expected).norm() / expected.norm()) < 1e-5


def randomized(module):
    """The module with random parameters, also for biases, norms and tables, which timm initializes to 0 or 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return module.eval()


VARIANTS = {
    "plain": {},
    "biased": {"qkv_bias": True},
    "qk_norm": {"qk_norm": True, "norm_layer": nn.LayerNorm},
    "scale_norm": {"scale_norm": True, "norm_layer": nn.LayerNorm},
    "gated": {"gated": True, "qkv_bias": True},
    "wide heads": {"attn_head_dim": 10, "dim_out": 7},
    "dropout": {"attn_drop": 0.5, "proj_drop": 0.5},
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_in_every_variant_with_and_without_masks(variant, fused):
    torch.manual_seed(0)
    original = randomized(Attention(24, num_heads=3, **VARIANTS[variant]))
    original.fused_attn = fused
    explicit = ExplicitAttention(copy.deepcopy(original)).eval()
    x = torch.randn(2, 9, 24)
    keep = torch.rand(2, 1, 9, 9) > 0.3
    keep[..., 0] = True
    with torch.no_grad():
        assert close(explicit(x), original(x))
        assert close(explicit(x, attn_mask=keep), original(x, attn_mask=keep))
        additive = torch.randn(2, 1, 9, 9)
        assert close(explicit(x, attn_mask=additive), original(x, attn_mask=additive))
        assert close(explicit(x, is_causal=True), original(x, is_causal=True))
        assert not close(explicit(x, is_causal=True), original(x))


@pytest.mark.parametrize("fused", [True, False])
def test_window_attention_with_and_without_mask(fused):
    torch.manual_seed(0)
    original = randomized(WindowAttention(24, num_heads=3, window_size=4))
    original.fused_attn = fused
    explicit = ExplicitWindowAttention(copy.deepcopy(original)).eval()
    x, mask = torch.randn(2 * 4, 16, 24), torch.randn(4, 16, 16)
    with torch.no_grad():
        assert close(explicit(x), original(x))
        assert close(explicit(x, mask=mask), original(x, mask=mask))
        assert not close(explicit(x, mask=mask), original(x))


def test_weights_keep_their_names():
    original = Attention(24, num_heads=3, qk_norm=True, norm_layer=nn.LayerNorm)
    assert ExplicitAttention(original).state_dict().keys() == original.state_dict().keys()
    window = WindowAttention(24, num_heads=3, window_size=4)
    assert set(ExplicitWindowAttention(window).state_dict()) == set(window.state_dict())


def test_a_whole_model_is_replaced_in_place_and_computes_the_same():
    torch.manual_seed(0)
    swin = SwinTransformer(
        img_size=32, patch_size=2, window_size=4, embed_dim=12, depths=(2, 2), num_heads=(2, 2), num_classes=5
    )
    for model, image, count in ((toy_vit(), toy_images(1), 2), (randomized(swin), torch.randn(1, 3, 32, 32), 4)):
        with torch.no_grad():
            expected = model(image)
            replaced = make_explicit(model, ADAPTERS, image)
            assert close(model(image), expected)
        assert len(replaced) == count
        assert sum(isinstance(m, MatMul) for m in model.modules()) == 2 * count
        assert make_explicit(model, ADAPTERS, image) == []
        assert not any(m._forward_hooks for m in model.modules())


def test_a_wrong_adapter_is_refused_with_its_name_and_module():
    def build(module):
        explicit = ExplicitAttention(module).eval()
        explicit.scale = explicit.scale * 1.1
        return explicit

    with pytest.raises(EquivalenceError, match=r"timm\.layers\.attention:Attention changes the output") as caught:
        make_explicit(toy_vit(), [Adapter("timm.layers.attention:Attention", build)], toy_images(1))
    assert caught.value.where == "blocks.0.attn"


def test_an_adapter_that_returns_nan_is_refused():
    def build(module):
        explicit = ExplicitAttention(module).eval()
        explicit.scale = float("nan")
        return explicit

    with pytest.raises(EquivalenceError):
        make_explicit(toy_vit(), [Adapter("timm.layers.attention:Attention", build)], toy_images(1))


def test_the_first_adapter_of_a_type_is_used_and_none_leaves_the_module():
    refuse = Adapter("timm.layers.attention:Attention", lambda module: None)
    model = toy_vit()
    assert make_explicit(model, [refuse, *ADAPTERS], toy_images(1)) == []
    assert type(model.blocks[0].attn) is Attention


def test_a_subclass_may_compute_something_else_and_is_read_by_its_own_graph():
    class Doubled(Attention):
        def forward(self, x, attn_mask=None, is_causal=False):
            return super().forward(x) * 2

    model = toy_vit()
    model.blocks[1].attn = Doubled(16, num_heads=2).eval()
    with torch.no_grad():
        expected = model(toy_images(2))
        assert make_explicit(model, ADAPTERS, toy_images(1)) == ["blocks.0.attn", "blocks.1.attn"]
        assert close(model(toy_images(2)), expected)
    assert isinstance(model.blocks[1].attn, Doubled)
    assert not isinstance(model.blocks[1].attn, ExplicitAttention)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(
    ("kernel", "dilation", "groups", "bias"), [(3, 1, 1, False), (5, 2, 2, True), ((2, 4), 1, 4, True)]
)
def test_tensorflows_padding_at_every_size(stride, kernel, dilation, groups, bias):
    torch.manual_seed(0)
    original = Conv2dSame(4, 8, kernel, stride=stride, dilation=dilation, groups=groups, bias=bias).eval()
    explicit = padded_conv(original)
    assert [(name, type(module)) for name, module in explicit.named_children()] == [
        ("pad", SamePad2d),
        ("conv", nn.Conv2d),
    ]
    assert explicit.conv.weight is original.weight
    for height in (7, 8, 9):
        for width in (10, 11, 12):
            x = torch.randn(2, 4, height, width)
            assert torch.equal(explicit(x), original(x))


def test_a_mobilenet_is_made_of_plain_convolutions_and_linears():
    torch.manual_seed(0)
    model = timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=5).eval()
    image = torch.randn(1, 3, 33, 32)
    with torch.no_grad():
        expected = model(image)
        replaced = make_explicit(model, ADAPTERS, image)
        assert close(model(image), expected)
    assert replaced[0] == "conv_stem"
    assert replaced[-1] == "classifier"
    assert len(replaced) == 6
    assert {type(m) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))} == {nn.Conv2d, nn.Linear}


def test_an_in_place_operation_behind_a_module_does_not_affect_its_check():
    model = nn.Sequential(Conv2dSame(3, 4, 3, stride=2), nn.ReLU(inplace=True)).eval()
    assert make_explicit(model, ADAPTERS, toy_images(1)) == ["0"]
