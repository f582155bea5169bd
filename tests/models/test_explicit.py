"""Any module that multiplies activations is read as a graph, and its products, Softmax and layers become modules."""

import copy
import pickle
from typing import NamedTuple

import pytest
import torch
from attention_toys import TOYS, toy
from numeric_toys import Sequence
from torch import nn
from torch.nn import functional as F

from qplug import SiteKind
from qplug.models.adapters import ADAPTERS, make_explicit
from qplug.models.attention import MatMul
from qplug.models.explicit import unread_notes
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


QUICK = (
    *("eva", "rope", "beit", "swinv2", "cait", "mvitv2", "levit conv down", "xcit", "twins local", "volo outlook"),
    *("hiera", "coatnet 2d", "tiny_vit", "davit window", "davit channel", "parallel", "efficientvit", "cascaded"),
    *("nest", "convit", "rotary pool", "multi-query einsum", "halo", "differential", "sam"),
)
"""One of each form; the others take as long, and find less."""


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


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TOYS]
)
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


def test_pickled_and_copied_modules_compute_the_same():
    model, x = toy("cait")
    explicit(model, x)
    for other in (copy.deepcopy(model.attn), pickle.loads(pickle.dumps(model.attn))):  # noqa: S301
        assert type(other) is type(model.attn)
        assert repr(other) == repr(model.attn)
        assert torch.equal(other(x), model.attn(x))


def test_dropout_of_the_original_is_kept_for_training():
    def weigh(m, q, k, v):
        dropped = F.dropout(v, 0.25, m.training)
        return F.scaled_dot_product_attention(q, k, dropped, dropout_p=0.5 if m.training else 0.0)

    model, x = own(weigh)
    state = torch.get_rng_state()
    explicit(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.attn_dropout.p, model.dropout.p) == (0.5, 0.25)
    assert torch.equal(model(x), model(x))
    assert not torch.equal(model.train()(x), model(x))


def test_arguments_of_other_kinds_than_those_that_were_read_are_refused():
    model, x = toy("swinv2")
    explicit(model, x)
    with pytest.raises(ValueError, match="a tensor is given that was not, or the reverse"):
        model.attn(x)
    model, x = toy("latent pool")
    model.attn.pool = "avg"
    explicit(model, x)
    with pytest.raises(ValueError, match="a tensor is given"):
        model.attn(x, attn_mask=torch.zeros(1, 9))


def fixed(m, q, k, v):
    return (q.reshape(len(q), 2, 6, 4) @ k.mT).softmax(-1) @ v if q.shape[2] == 6 else v


def test_a_size_that_the_forward_asked_for_is_held_to():
    model, x = own(fixed)
    explicit(model, x)
    with pytest.raises(ValueError, match="has to be True is False"):
        model(torch.randn(1, 7, 8))


def test_other_sizes_are_computed_where_the_original_computes_them():
    model, _ = toy("xcit")
    x = torch.randn(2, 13, 24)
    with torch.no_grad():
        expected = model(x)
        explicit(model, torch.randn(1, 9, 24))
        assert close(model(x), expected)


UNREAD = {
    "one image": (lambda m, q, k, v: (q.view(1, 2, 6, 4) @ k.mT).softmax(-1) @ v, "fails on three images"),
    "a branch for one image": (
        lambda m, q, k, v: (q @ k.mT).softmax(-1) @ v if len(q) > 1 else (q @ k.mT).softmax(-1) @ v + 0,
        "depends on the number of images",
    ),
    "the batch as a constant": (
        lambda m, q, k, v: (q.reshape(int(str(q.shape[0])), 2, 6, 4) @ k.mT).softmax(-1) @ v,
        "depends on the number of images",
    ),
    "a value": (lambda m, q, k, v: (q @ k.mT).softmax(-1) @ v * float(q.max()), "values of a tensor"),
    "gradients": (lambda m, q, k, v: torch.no_grad().__enter__() or q @ k.mT @ v, "switches gradients"),
    "a tensor of nobody": (lambda m, q, k, v: (q @ k.mT + NOBODY).softmax(-1) @ v, "neither an argument nor a part"),
    "state": (lambda m, q, k, v: setattr(m, "kept", q.mean()) or (q @ k.mT).softmax(-1) @ v, "sets kept"),
    "images in the second axis": (
        lambda m, q, k, v: (q.transpose(0, 1) @ k.transpose(0, 1).mT @ v.transpose(0, 1)).transpose(0, 1),
        "no common axis of images",
    ),
    "values of all images together": (
        lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v.mean(0, keepdim=True)),
        "the values of its attention have no axis of images",
    ),
    "randomness": (lambda m, q, k, v: (q @ k.mT + torch.rand(6, 6)).softmax(-1) @ v, "changes the output by"),
}
NOBODY = torch.ones(6, 6)


@pytest.mark.parametrize("what", UNREAD)
def test_a_forward_that_cannot_be_read_stays_as_it_is_with_the_reason(what):
    weigh, reason = UNREAD[what]
    model, x = own(weigh)
    left = {}
    with torch.no_grad():
        expected = model(x) if what != "randomness" else None
        make_explicit(model, ADAPTERS, x, left)
        assert expected is None or close(model(x), expected)
    assert reason in left["(model)"]
    assert unread_notes(left)[0].startswith("products of (model) stay in float: ")
    assert products(model) == []
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_tensors_that_a_module_remembers_are_computed_again():
    """timm's LeViT keeps its position bias from the first forward on, which other weights would make stale."""
    model, x = toy("levit")
    with torch.no_grad():
        model(x)
        explicit(model, x)
        model.attn.attention_biases.copy_(torch.randn_like(model.attn.attention_biases))
        other, _ = toy("levit")
        other.load_state_dict(dict(model.state_dict()))
        assert close(model(x), other(x))


def test_gradients_are_those_of_the_original():
    model, x = toy("eva")
    reference = copy.deepcopy(model)
    explicit(model, x)
    for one in (model, reference):
        one(torch.cat([x, x * 0.5])).square().sum().backward()
    wanted = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        assert close(parameter.grad, wanted[name].grad), name


def test_a_block_stays_one_of_its_class_and_shares_its_place():
    model, x = toy("parallel")
    model.again = model.attn
    block = model.attn
    explicit(model, x)
    assert model.again is model.attn is block


def test_a_program_of_torch_export_takes_any_number_of_images():
    model, x = toy("convit")
    explicit(model, x)
    batch = torch.export.Dim("batch")
    pair = torch.cat([x, x])
    program = torch.export.export(model, (pair,), dynamic_shapes={"x": {0: batch}}, strict=False).module()
    five = torch.randn(5, *x.shape[1:])
    with torch.no_grad():
        assert close(program(five), model(five))


def test_layers_that_read_one_weight_together_stay_functions():
    class Tied(Plain):
        def forward(self, x):
            return super().forward(x) + F.linear(x, self.weight[:8])

    model, x = Tied().eval(), torch.randn(1, 6, 8)
    explicit(model, x)
    assert sorted(products(model)) == QK_AV
    assert "weight" in model.state_dict()
    assert set(find_sites(model, x).uncovered_macs) == {"(model)"}


def test_a_forward_that_was_set_on_the_instance_is_read_and_replaced():
    model, x = own(WAYS["bmm"])
    plain = model.forward
    model.forward = lambda x: plain(x) * 2
    with torch.no_grad():
        expected = model(x)
        explicit(model, x)
        assert close(model(x), expected)
    assert {"matmul_qk.lhs", "matmul_av.rhs"} <= {site.name for site in find_sites(model, x).sites}


class Result(NamedTuple):
    out: torch.Tensor


def test_a_result_of_a_class_of_its_own_is_not_made_a_plain_one():
    class Inner(Plain):
        def forward(self, x):
            return Result(super().forward(x))

    model, x, left = Sequence(lambda m, x: m.attn(x).out, attn=Inner()).eval(), torch.randn(1, 6, 8), {}
    make_explicit(model, ADAPTERS, x, left)
    assert left == {"attn": "it returns a Result, which its graph cannot make"}
    assert model(x).shape == x.shape


class Functional(nn.Module):
    """Attention by torch's function, which is written in Python and reads parameters that are no layer's."""

    def __init__(self):
        super().__init__()
        shapes = {"in_proj_weight": (24, 8), "in_proj_bias": (24,), "out_weight": (8, 8), "out_bias": (8,)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x):
        x = x.transpose(0, 1)
        weights = self.in_proj_weight, self.in_proj_bias, None, None, False, 0.0, self.out_weight, self.out_bias
        return F.multi_head_attention_forward(x, x, x, 8, 2, *weights, False, need_weights=False)[0].transpose(0, 1)


def test_products_within_torchs_own_function_are_read():
    torch.manual_seed(0)
    model, x = Functional().eval(), torch.randn(1, 6, 8)
    more = torch.randn(4, 6, 8)
    with torch.no_grad():
        expected = model(more)
        explicit(model, x)
        assert close(model(more), expected)
    assert sorted(products(model)) == QK_AV
    found = find_sites(model, x)
    assert found.uncovered_macs == {}
    assert {"in_proj.weight", "out.weight"} <= {site.name for site in found.sites}


@pytest.mark.parametrize("value", [0.0, 300.0, float("nan")])
@pytest.mark.parametrize("name", ["beit", "swinv2"])
def test_the_graph_does_not_depend_on_the_weights(name, value):
    """A run folder is loaded into a model with other weights, and gets its own last."""
    model, x = toy(name)
    code = explicit(model, x).attn._compiled.code
    other, _ = toy(name)
    with torch.no_grad():
        for parameter in other.attn.parameters():
            parameter.fill_(-value)
    assert explicit(other, x).attn._compiled.code == code
    assert repr(other) == repr(model)
