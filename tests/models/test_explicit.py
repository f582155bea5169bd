"""Any module that multiplies activations is read as a graph, and its products, Softmax and layers become modules."""

import copy

import pytest
import torch
from attention_toys import TOYS, toy
from torch import nn
from torch.nn import functional as F

from qplug import SiteKind
from qplug.models.adapters import ADAPTERS, make_explicit
from qplug.models.attention import MatMul
from qplug.quantization.sites import find_sites

QK_AV = ["matmul_av", "matmul_qk", "softmax"]
OTHER_NAMES = {
    "volo outlook": ["matmul_av", "softmax"],
    "efficientvit": ["matmul", "matmul_2"],
    "cascaded": [*QK_AV, "matmul_av_2", "matmul_qk_2", "softmax_2"],
    "convit": [*QK_AV, "softmax_2"],
    "multi-query einsum": [*QK_AV, "matmul", "matmul_2", "matmul_3", "matmul_4"],
    "bottleneck": [*QK_AV, "pos_embed.matmul", "pos_embed.matmul_2"],
    "halo": [*QK_AV, "pos_embed.matmul", "pos_embed.matmul_2"],
    "mvitv2": [*QK_AV, "matmul", "matmul_2"],
    "lambda": ["matmul", "matmul_2", "matmul_av", "softmax"],
    "differential": [*QK_AV, "matmul_av_2", "matmul_qk_2", "softmax_2"],
    "swiftformer": ["matmul"],
    "sam": [*QK_AV, "matmul", "matmul_2"],
    "global context": ["matmul_av", "softmax"],
}
IN_FLOAT = {
    "lambda": {"attn.conv_lambda"},  # a three-dimensional convolution
    "differential": {"attn"},  # a sum of elementwise products, as in the next one
    "swiftformer": {"attn"},
}


def close(output, expected):
    return float((output - expected).norm() / expected.norm()) < 1e-5


def products(model):
    """Names, below ``attn``, of the modules that multiply activations, and of every Softmax."""
    return [n.removeprefix("attn.") for n, m in model.named_modules() if isinstance(m, (MatMul, nn.Softmax))]


def explicit(model, x):
    """The model made explicit, which has to succeed."""
    left = {}
    make_explicit(model, ADAPTERS, x, left)
    assert left == {}
    return model


@pytest.mark.parametrize("name", TOYS)
def test_an_attention_of_timm_has_a_site_for_every_product(name):
    model, x = toy(name)
    keys = set(model.state_dict())
    kind = type(model.attn)
    more = torch.cat([x, x.flip(-1), x * 0.3])
    with torch.no_grad():
        expected = model(x), model(more)
        explicit(model, x)
        assert close(model(x), expected[0])
        assert close(model(more), expected[1])
        assert close(copy.deepcopy(model)(more), expected[1])
    assert isinstance(model.attn, kind)
    assert set(model.state_dict()) == keys
    assert sorted(products(model)) == sorted(OTHER_NAMES.get(name, QK_AV))
    assert set(find_sites(model, x).uncovered_macs) == IN_FLOAT.get(name, set())
    assert make_explicit(model, ADAPTERS, x) == []


class Plain(nn.Module):
    """An attention of someone's own."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(24, 8)), nn.Parameter(torch.randn(24))
        self.proj = nn.Linear(8, 8)
        self.register_buffer("keep", torch.ones(6, 6).tril().bool())

    def forward(self, x):
        q, k, v = F.linear(x, self.weight, self.bias).view(x.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return self.proj(self.weigh(q, k, v).transpose(1, 2).flatten(2))

    def weigh(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


def own(weigh):
    """A model that is an attention itself, and its input; ``weigh`` gets it, and q, k and v, each (B, 2, 6, 4)."""
    torch.manual_seed(0)
    return type("Own", (Plain,), {"weigh": weigh})().eval(), torch.randn(1, 6, 8)


WAYS = {
    "bmm": lambda m, q, k, v: torch.bmm(
        torch.bmm(q.flatten(0, 1) / 2, k.flatten(0, 1).mT).softmax(-1), v.flatten(0, 1)
    ).view_as(v),
    "baddbmm": lambda m, q, k, v: (
        torch.baddbmm(torch.ones(1, 6, 6), q.flatten(0, 1), k.flatten(0, 1).mT, beta=0.5, alpha=0.3)
        .softmax(2)
        .bmm(v.flatten(0, 1))
        .view_as(v)
    ),
    "einsum": lambda m, q, k, v: torch.einsum(
        "bhnm,bhmd->bhnd", F.softmax(torch.einsum("bhnd,bhmd->bhnm", q, k), 3), v
    ),
    "einsum to another layout": lambda m, q, k, v: torch.einsum(
        "bmhn,bhmd->bnhd", torch.einsum("bhnd,bhmd->bmhn", q, k).softmax(1), v
    ).transpose(1, 2),
    "values on the left": lambda m, q, k, v: (v.mT @ (k @ q.mT).softmax(-2)).mT,
    "masked": lambda m, q, k, v: (q @ k.mT).masked_fill(~m.keep, float("-inf")).softmax(-1) @ v,
    "causal": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3),
    "boolean mask": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=m.keep),
    "bias": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, m.keep.float()),
    "grouped queries": lambda m, q, k, v: F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True),
    "five axes": lambda m, q, k, v: (
        ((t := [x.reshape(-1, 2, 2, 3, 4) for x in (q, k, v)])[0] @ t[1].mT).softmax(-1).matmul(t[2]).flatten(2, 3)
    ),
    "one key for all heads": lambda m, q, k, v: (q @ k[:, :1].mT).softmax(-1) @ v[:, :1],
}


@pytest.mark.parametrize("way", WAYS)
def test_an_attention_of_ones_own_is_read_however_it_is_written(way):
    model, x = own(WAYS[way])
    more = torch.cat([x, x.flip(1), x * 2])
    with torch.no_grad():
        expected = model(x), model(more)
        explicit(model, x)
        assert close(model(x), expected[0])
        assert close(model(more), expected[1])
    assert sorted(products(model)) == QK_AV
    found = {site.name: site for site in find_sites(model, x).sites}
    assert found["matmul_qk.rhs"].kind is SiteKind.KEY
    assert found["matmul_av.lhs"].kind is SiteKind.POST_SOFTMAX
    assert found["matmul_av.rhs"].kind is SiteKind.VALUE
    assert {"linear.weight", "linear.input", "proj.weight"} <= set(found)
    assert find_sites(model, x).uncovered_macs == {}
