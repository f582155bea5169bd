"""MACs by module: every operator has a formula, or has none to count, or is named."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qplug import InputError
from qplug.quantization.counting import count
from qplug.quantization.module_stack import ROOT

B, N, C, M = 1, 6, 8, 5


class Of(nn.Module):
    """A function of its input and of parameters."""

    def __init__(self, function, **parameters):
        super().__init__()
        self.function = function
        for name, shape in parameters.items():
            setattr(self, name, nn.Parameter(torch.randn(shape), requires_grad=False))

    def forward(self, x):
        return self.function(self, x)


def counted(function, x=None, **parameters):
    return count(Of(function, **parameters).eval(), torch.randn(B, N, C) if x is None else x)


FORMULAS = {
    "mv": (lambda m, x: m.w @ x[0, 0], {"w": (M, C)}, M * C),
    "addmv": (lambda m, x: torch.addmv(m.b, m.w, x[0, 0]), {"w": (M, C), "b": (M,)}, M * C),
    "dot": (lambda m, x: x[0, 0] @ m.w, {"w": (C,)}, C),
    "addr": (lambda m, x: torch.addr(m.w, x[0, :, 0], x[0, 0]), {"w": (N, C)}, N * C),
    "addbmm": (lambda m, x: torch.addbmm(m.b, x, m.w), {"w": (1, C, M), "b": (N, M)}, N * C * M),
    "einsum": (lambda m, x: torch.einsum("bnc,cm->bnm", x, m.w), {"w": (C, M)}, N * C * M),
    "tensordot": (lambda m, x: torch.tensordot(x, m.w, 1), {"w": (C, M)}, N * C * M),
    "bilinear": (lambda m, x: F.bilinear(x, x, m.w), {"w": (M, C, C)}, N * M * C * C),
    "cdist": (
        lambda m, x: torch.cdist(x, m.w, compute_mode="donot_use_mm_for_euclid_dist"),
        {"w": (1, M, C)},
        N * M * C,
    ),
    "conv1d": (lambda m, x: F.conv1d(x, m.w), {"w": (M, N, 3)}, M * N * 3 * (C - 2)),
    "sum of products": (lambda m, x: (x.unsqueeze(-1) * m.w).sum(-2), {"w": (C, M)}, N * C * M),
    "mean of products": (lambda m, x: (x.unsqueeze(-1) * m.w).mean(-2), {"w": (C, M)}, N * C * M),
    "products in place": (lambda m, x: x.clone().mul_(m.w).sum(-1), {"w": (N, C)}, N * C),
    "sum of a view": (lambda m, x: (x[..., None] * m.w).flatten(0, 1).sum(1), {"w": (C, M)}, N * C * M),
    "sum of a copy": (lambda m, x: torch.kron(x[0], m.w).view(N, C, C, M).sum((1, 2)), {"w": (C, M)}, N * C * C * M),
    "pooling by attention": (lambda m, x: (x * (x @ m.w).softmax(1)).sum(1), {"w": (C, 1)}, 2 * N * C),
    "attention": (lambda m, x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None]), {}, 2 * N * N * C),
    "grid_sample": (
        lambda m, x: F.grid_sample(x[:, None], m.w.tanh(), align_corners=False),
        {"w": (1, 3, 4, 2)},
        12 * 4,
    ),
    "weighted bags": (
        lambda m, x: F.embedding_bag(torch.zeros(3, 4).long(), m.w, per_sample_weights=x[0, :3, :4], mode="sum"),
        {"w": (M, C)},
        12 * C,
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_an_operator_is_counted(name):
    function, parameters, macs = FORMULAS[name]
    found = counted(function, **parameters)
    assert found.macs == {ROOT: macs}
    assert found.unknown == {}


FREE = {
    "scaled channels, pooled": (lambda m, x: (x * m.w).mean(1), {"w": (C,)}),
    "scaled channels, summed": (lambda m, x: (x * m.w).sum(1), {"w": (C,)}),
    "gated, flattened, summed": (lambda m, x: (x * x.sigmoid().mean(1, True)).flatten(0, 1).sum(0), {}),
    "angles": (lambda m, x: (torch.arange(4.0)[:, None] * m.w).sin(), {"w": (C,)}),
    "gates by position": (lambda m, x: x * m.w, {"w": (N, C)}),
    "a row of a table of gates": (lambda m, x: x * m.w[2], {"w": (3, C)}),
    "a sum of squares": (lambda m, x: (x * x).sum(-1), {}),
    "positions": (lambda m, x: x + m.w, {"w": (N, C)}),
    "resampled positions": (lambda m, x: F.interpolate(m.w[None], (N, C), mode="bicubic") + x, {"w": (1, 3, 4)}),
    "table": (lambda m, x: x + m.w[torch.arange(N)], {"w": (9, C)}),
    "norms": (lambda m, x: F.layer_norm(F.rms_norm(F.normalize(x), (C,)), (C,)).softmax(-1).cumsum(1), {}),
    "activations": (
        lambda m, x: F.glu(F.gelu(F.silu(F.hardswish(F.mish(F.elu(F.prelu(x, m.w[0, :1]))))))),
        {"w": (1, 2)},
    ),
    "pooling": (lambda m, x: F.max_pool1d(F.adaptive_avg_pool1d(F.avg_pool1d(x, 2), 4), 2), {}),
    "moved values": (
        lambda m, x: F.unfold(F.pixel_shuffle(x[:, :4, None], 2), 1).roll(1, 1).flip(1).topk(2).values,
        {},
    ),
    "shapes": (lambda m, x: x.new_zeros(3) + torch.zeros_like(m.w).sum() + x.to(m.w).sum(), {"w": (3, 3)}),
}


@pytest.mark.parametrize("name", FREE)
def test_what_multiplies_no_matrices_is_in_no_count(name):
    function, parameters = FREE[name]
    found = counted(function, **parameters)
    assert found.macs == found.unknown == {}


class Own(torch.autograd.Function):
    """A product outside torch."""

    @staticmethod
    def forward(ctx, x, w):
        return torch.from_numpy(x.numpy() @ w.numpy())


UNKNOWN = {
    "fft": (
        lambda m, x: torch.fft.irfft(torch.fft.rfft(x) * torch.view_as_complex(m.w)),
        {"w": (N, C // 2 + 1, 2)},
        "aten._fft_",
    ),
    "inverse": (lambda m, x: torch.linalg.inv(m.w), {"w": (C, C)}, "aten.linalg_inv_ex"),
    "numpy": (lambda m, x: torch.from_numpy(x.numpy() @ m.w.numpy()), {"w": (C, M)}, "its weight"),
    "a loop over taps": (lambda m, x: sum(x.roll(k, 1) * m.w[k] for k in range(3)), {"w": (3, C)}, "by parts of 1.w"),
    "taps, unbound": (
        lambda m, x: sum(x.roll(k, 1) * w for k, w in enumerate(m.w.unbind(1))),
        {"w": (C, 3)},
        "parts of 1.w",
    ),
    "an own function": (lambda m, x: Own.apply(x, m.w), {"w": (C, M)}, "its weight"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_no_formula_counts_is_named(name):
    function, parameters, operators = UNKNOWN[name]
    model = nn.Sequential(nn.Linear(C, C), Of(function, **parameters)).eval().requires_grad_(False)
    found = count(model, torch.randn(B, N, C))
    assert list(found.unknown) == ["1"]
    assert operators in found.unknown["1"]
    assert found.macs == {"0": N * C * C}


def test_a_custom_operator_is_named():
    @torch.library.custom_op("qplug_test::product", mutates_args=())
    def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x @ w

    assert counted(lambda m, x: product(x, m.w), w=(C, M)).unknown == {ROOT: "qplug_test.product"}


def test_a_weight_that_code_outside_torch_reads_beside_its_layer_is_found():
    layer = nn.Linear(C, C, bias=False)
    model = Of(lambda m, x: m.layer(x) + torch.from_numpy(x.numpy() @ m.layer.weight.numpy()))
    model.layer, before = layer, layer.weight.clone()
    model.eval().requires_grad_(False)
    assert count(model, torch.randn(B, N, C)).reads == {"layer.weight": "code outside torch"}
    assert torch.equal(layer.weight, before)


def test_layers_that_are_called_often_or_in_place_or_share_a_weight_are_read_by_their_calls_alone():
    model = Of(lambda m, x: m.one(m.two(F.relu_(m.two(F.relu_(m.two(x)))))) + m.table(torch.arange(N)))
    model.one, model.two, model.table = nn.Linear(C, C), nn.Linear(C, C), nn.Embedding(C, C)
    model.one.weight = model.table.weight
    assert count(model.eval().requires_grad_(False), torch.randn(B, N, C)).reads == {}


def test_matrices_that_nothing_reads_are_not_missed():
    assert counted(lambda m, x: x + 1, w=(C, M)).unknown == {}


RECURRENT = {
    "LSTM": (nn.LSTM(C, M, batch_first=True), N * 4 * M * (C + M)),
    "both ways": (nn.LSTM(C, M, 2, batch_first=True, bidirectional=True), N * 2 * 4 * M * (C + M + 2 * M + M)),
    "GRU": (nn.GRU(C, M, batch_first=True), N * 3 * M * (C + M)),
    "RNN": (nn.RNN(C, M, batch_first=True), N * M * (C + M)),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers(name):
    layer, macs = RECURRENT[name]
    found = count(nn.Sequential(layer.eval().requires_grad_(False)), torch.randn(B, N, C))
    assert (found.macs, found.unknown) == ({"0": macs}, {})


def test_deformable_convolution():
    from torchvision.ops import DeformConv2d

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.deform = DeformConv2d(3, 4, 3)

        def forward(self, x):
            return self.deform(x, torch.ones(1, 18, x.shape[2] - 2, x.shape[3] - 2))

    found = count(Net().eval().requires_grad_(False), torch.randn(1, 3, 8, 8))
    assert (found.macs, found.unknown) == ({"deform": 36 * 4 * 27}, {})


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_that_stays_in_float_is_counted_also_on_its_fast_path(batch_first):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(C, 2, batch_first=batch_first)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    found = count(Net().eval().requires_grad_(False), torch.randn(*((1, N) if batch_first else (N, 1)), C))
    assert (found.macs, found.unknown) == ({"attention": N * (4 * C * C + 2 * N * C)}, {})
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_fused_kernels_of_a_scripted_layer():
    layer = torch.jit.script(nn.TransformerEncoderLayer(C, 2, 24, batch_first=True).eval().requires_grad_(False))
    found = count(nn.Sequential(layer), torch.randn(1, N, C))
    assert (found.macs, found.unknown) == ({"0": N * (4 * C * C + 2 * N * C + 2 * 24 * C)}, {})


def test_an_operator_that_cannot_be_looked_at_is_an_error_with_a_name():
    def fails(module, x):
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise RuntimeError("no dispatch mode")
        return x

    model = nn.Sequential(Of(fails)).eval()
    with pytest.raises(InputError, match=r"cannot be counted \(RuntimeError: no dispatch mode\)"):
        count(model, torch.randn(B, N, C))


def test_parameters_that_are_trained_are_counted_and_stay_trained():
    model = nn.Sequential(nn.Linear(C, M), nn.MultiheadAttention(M, 1))[:1].eval()
    assert count(model, torch.randn(B, N, C)).macs == {"0": N * C * M}
    assert all(parameter.requires_grad for parameter in model.parameters())
