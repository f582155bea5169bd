"""torch's multi-head attention and transformer layers call modules of their own, in every variant and every mode."""

import copy

import pytest
import torch
from torch import nn

from qplug.models.adapters import ADAPTERS, make_explicit
from qplug.models.attention import MatMul
from qplug.models.multihead_attention import ExplicitMultiheadAttention

B, L, S, E, H = 3, 5, 7, 16, 2


def attention(**more):
    torch.manual_seed(0)
    made = nn.MultiheadAttention(E, H, **more)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return made.eval().requires_grad_(False)


def same(found, expected):
    """Outputs and weights, which are ``None`` together."""
    assert (found[1] is None) == (expected[1] is None)
    for one, other in zip(found, expected, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)


def inputs(original, batch_first, cross):
    """Queries, keys and values of the original's widths."""
    torch.manual_seed(1)
    query = torch.randn(B, L, E)
    key, value = (torch.randn(B, S, original.kdim), torch.randn(B, S, original.vdim)) if cross else (query, query)
    tensors = [query, key, value] if cross else [query] * 3
    if batch_first:
        return tensors
    turned = [x.transpose(0, 1).contiguous() for x in tensors]
    return turned if cross else [turned[0]] * 3


VARIANTS = {
    "self": ({}, False),
    "without bias": ({"bias": False}, False),
    "cross": ({}, True),
    "other widths": ({"kdim": 12, "vdim": 10}, True),
    "other widths without bias": ({"kdim": 12, "vdim": 10, "bias": False}, True),
    "added key": ({"add_bias_kv": True}, True),
    "added zero": ({"add_zero_attn": True}, False),
    "both added": ({"add_bias_kv": True, "add_zero_attn": True}, True),
    "dropout": ({"dropout": 0.5}, False),
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_with_every_mask(variant, batch_first):
    options, cross = VARIANTS[variant]
    original = attention(batch_first=batch_first, **options)
    explicit = ExplicitMultiheadAttention(copy.deepcopy(original)).eval()
    given = inputs(original, batch_first, cross)
    keys = S if cross else L
    padding = torch.zeros(B, keys, dtype=torch.bool)
    padding[1, -2:] = True
    causal = torch.ones(L, keys, dtype=torch.bool).triu(1)
    calls = [
        {},
        {"need_weights": False},
        {"average_attn_weights": False},
        {"key_padding_mask": padding},
        {"key_padding_mask": padding.float() * -3, "need_weights": False},
        {"attn_mask": causal},
        {"attn_mask": torch.randn(B * H, L, keys)},
        {"attn_mask": causal, "key_padding_mask": padding, "need_weights": False},
        {"attn_mask": causal, "is_causal": True, "need_weights": False},
    ]
    with torch.no_grad():
        for call in calls:
            same(explicit(*given, **call), original(*given, **call))


def test_inputs_without_a_batch():
    original = attention()
    explicit = ExplicitMultiheadAttention(copy.deepcopy(original)).eval()
    x, padding = torch.randn(L, E), torch.tensor([False, False, True, False, True])
    with torch.no_grad():
        for call in (
            {},
            {"key_padding_mask": padding},
            {"average_attn_weights": False, "attn_mask": padding.expand(L, L)},
        ):
            same(explicit(x, x, x, **call), original(x, x, x, **call))


def test_the_hint_of_a_causal_mask_needs_the_mask():
    x = torch.randn(B, L, E)
    with pytest.raises(ValueError, match="attn_mask is None"):
        ExplicitMultiheadAttention(attention(batch_first=True))(x, x, x, is_causal=True)


def test_every_operation_is_a_module_and_no_weight_holds_more_than_itself():
    explicit = ExplicitMultiheadAttention(attention(add_bias_kv=True))
    names = {name for name, module in explicit.named_modules() if type(module) in (nn.Linear, MatMul)}
    assert names == {"q_proj", "k_proj", "v_proj", "out_proj", "matmul_qk", "matmul_av"}
    for parameter in explicit.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.numel() * 4
    assert set(explicit.state_dict()) == {
        *(f"{name}.{kind}" for name in ("q_proj", "k_proj", "v_proj", "out_proj") for kind in ("weight", "bias")),
        *("bias_k", "bias_v"),
    }


class Encoder(nn.Module):
    """torch's encoder over tokens; the last ``padded`` of them are padding."""

    def __init__(self, layer=nn.TransformerEncoderLayer, padded=0, nested=True, **more):
        super().__init__()
        torch.manual_seed(0)
        options = {"batch_first": True, "dropout": 0.0} | more
        one = layer(E, H, 24, **options)
        self.encoder = nn.TransformerEncoder(one, 2, nn.LayerNorm(E), enable_nested_tensor=nested)
        self.padded = padded
        self.eval().requires_grad_(False)

    def forward(self, x):
        mask = torch.zeros(x.shape[:2], dtype=torch.bool)
        mask[:, x.shape[1] - self.padded :] = True
        return self.encoder(x, src_key_padding_mask=mask if self.padded else None)


class OwnLayer(nn.TransformerEncoderLayer):
    """A subclass that changes nothing."""


def fused_calls(monkeypatch):
    """The names of torch's fused kernels, at each call of one."""
    found = []
    for name in ("_transformer_encoder_layer_fwd", "_native_multi_head_attention", "_nested_tensor_from_mask"):
        kernel = getattr(torch, name)
        monkeypatch.setattr(
            torch, name, lambda *a, name=name, kernel=kernel, **k: (found.append(name), kernel(*a, **k))[1]
        )
    return found


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("padded", [0, 2])
@pytest.mark.parametrize("layer", [nn.TransformerEncoderLayer, OwnLayer])
def test_an_encoder_calls_no_fused_kernel_and_computes_the_same(layer, padded, monkeypatch):
    model, x = Encoder(layer, padded), torch.randn(B, L, E)
    calls = fused_calls(monkeypatch)
    with torch.no_grad():
        expected = model(x)
        assert "_transformer_encoder_layer_fwd" in calls
        replaced = make_explicit(model, ADAPTERS, x[:1])
        calls.clear()
        found = model(x)
    assert calls == []
    assert replaced == ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("options", [{"norm_first": True}, {"activation": "gelu"}, {"batch_first": False}])
def test_layers_in_other_forms(options, monkeypatch):
    model, x = Encoder(nested=False, **options), torch.randn(B, L, E)
    with torch.no_grad():
        expected = model(x)
        make_explicit(model, ADAPTERS, x[:1])
        calls = fused_calls(monkeypatch)
        found = model(x)
    assert calls == []
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=5e-6)
    kind = nn.GELU if options.get("activation") == "gelu" else nn.ReLU
    assert [type(layer.activation) for layer in model.encoder.layers] == [kind, kind]


def test_a_whole_transformer_with_its_decoder(monkeypatch):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Transformer(E, H, 1, 1, 24, batch_first=True)
            self.eval().requires_grad_(False)

        def forward(self, x):
            return self.net(x, x.flip(1), tgt_mask=self.net.generate_square_subsequent_mask(x.shape[1]))

    model, x = Whole(), torch.randn(B, L, E)
    with torch.no_grad():
        expected = model(x)
        replaced = make_explicit(model, ADAPTERS, x[:1])
        calls = fused_calls(monkeypatch)
        found = model(x)
    assert calls == []
    assert replaced == [
        "net.encoder.layers.0.self_attn",
        "net.decoder.layers.0.self_attn",
        "net.decoder.layers.0.multihead_attn",
    ]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=5e-6)


def test_a_subclass_that_inherits_forward_and_one_that_does_not():
    class Inherits(nn.MultiheadAttention):
        pass

    class Doubles(nn.MultiheadAttention):
        def forward(self, *args, **kwargs):
            return 2 * super().forward(*args, **kwargs)[0]

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = (kind(E, H, batch_first=True).eval() for kind in (Inherits, Doubles))

        def forward(self, x):
            return self.two(*[self.one(x, x, x)[0]] * 3)

    model, x = Both().eval().requires_grad_(False), torch.randn(B, L, E)
    expected = model(x)
    make_explicit(model, ADAPTERS, x[:1])
    assert isinstance(model.one, ExplicitMultiheadAttention)
    assert isinstance(model.two, Doubles)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=5e-6)
