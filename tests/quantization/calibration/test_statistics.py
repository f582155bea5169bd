"""Statistics of one site: ranges in the scales' shape, quantiles, and errors against float64."""

import numpy as np
import pytest
import torch
from numeric_toys import calibrated
from torch.nn import functional as F

from qplug import Granularity, QuantSpec, SiteKind, SiteStats, Smoothing, UniformQuantizer
from qplug.core.types import Site
from qplug.quantization.calibration.product import Product

T, C, H = Granularity.PER_TENSOR, Granularity.PER_CHANNEL, Granularity.PER_HEAD


@pytest.fixture(scope="module")
def known():
    """Every site of the toy and its statistics, with gradients."""
    model, found, calibration = calibrated(loss="cross_entropy")
    return model, {site.name: calibration.stats(site) for site in found.sites}


def coarse(stats, granularity):
    return UniformQuantizer.from_range(*stats.range(granularity), QuantSpec(3)).infer(stats.sample)


def oracle(stats, quantized):
    """The error of every output before summation, in float64, (b, n, M)."""
    product, role = stats.product, stats.site.role
    delta = stats.to_matrix(quantized.double() - stats.sample.double())
    if role in ("weight", "rhs"):
        moved = np.einsum("bnk,bmk->bnm", product.lhs.double().numpy(), delta.numpy())
    else:
        moved = np.einsum("bnk,bmk->bnm", delta.numpy(), product.rhs.double().numpy())
    return moved**2 * product.importance.double().numpy()


WITH_PRODUCT = [
    *("patch_embed.proj.weight", "patch_embed.proj.input", "blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.input"),
    *("blocks.0.attn.matmul_qk.lhs", "blocks.0.attn.matmul_qk.rhs", "blocks.1.attn.matmul_av.lhs"),
    *("blocks.1.attn.matmul_av.rhs", "blocks.1.mlp.fc2.input", "head.weight"),
]


@pytest.mark.parametrize("name", WITH_PRODUCT)
def test_output_error_per_tensor_equals_float64(known, name):
    stats = known[1][name]
    quantized = coarse(stats, T)
    error = stats.output_error(quantized, T)
    assert error.shape == ()
    assert float(error) == pytest.approx(oracle(stats, quantized).sum(), rel=1e-4)


@pytest.mark.parametrize("name", ["patch_embed.proj.weight", "blocks.0.attn.qkv.weight"])
def test_output_error_of_weights_per_channel(known, name):
    stats = known[1][name]
    quantized = coarse(stats, C)
    error = stats.output_error(quantized, C)
    assert error.shape == (len(stats.sample), *[1] * (stats.sample.dim() - 1))
    assert np.allclose(error.flatten().double(), oracle(stats, quantized).sum((0, 1)), rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in WITH_PRODUCT if "matmul" in name])
def test_output_error_per_head(known, name):
    stats = known[1][name]
    quantized = coarse(stats, H)
    error = stats.output_error(quantized, H)
    by_head = oracle(stats, quantized).sum((1, 2)).reshape(-1, 2).sum(0)
    assert error.shape == (2, 1, 1)
    assert np.allclose(error.flatten().double(), by_head, rtol=1e-4)
    assert by_head[0] != pytest.approx(by_head[1], rel=1e-3)


def test_output_error_equals_the_error_of_the_operation(known):
    """Quantize a weight, run the linear, weight the difference: independent of the sample's layout."""
    model, stats = known[0], known[1]["blocks.0.mlp.fc1.weight"]
    quantized = coarse(stats, T)
    x, linear = known[1]["blocks.0.mlp.fc1.input"].sample, model.blocks[0].mlp.fc1
    moved = F.linear(x, quantized, linear.bias) - linear(x)
    expected = (moved.square() * stats.product.importance[0]).sum()
    assert float(stats.output_error(quantized, T)) == pytest.approx(float(expected), rel=1e-3)


def test_output_error_of_grouped_convolutions_per_channel():
    torch.manual_seed(0)
    weight, lhs = torch.randn(6, 2, 3, 3), torch.randn(3, 40, 18)
    site = Site("c.weight", SiteKind.CONV_WEIGHT, "c", "weight", (6, 2, 3, 3), channel_axis=0)
    stats = SiteStats.from_tensor(weight, site)
    stats.to_matrix = lambda x: x.reshape(3, 2, -1)
    stats.product = Product(lhs, stats.to_matrix(weight), torch.rand(3, 40, 2))
    quantized = coarse(stats, C)
    by_channel = oracle(stats, quantized).sum(1).reshape(-1)
    assert np.allclose(stats.output_error(quantized, C).flatten().double(), by_channel, rtol=1e-4)


def test_without_importance_all_outputs_have_equal_weight(known):
    stats = known[1]["blocks.0.attn.qkv.weight"]
    plain = Product(stats.product.lhs, stats.product.rhs)
    alike = SiteStats(**{**vars(stats), "product": plain})
    quantized = coarse(stats, T)
    moved = plain.lhs.double() @ (quantized.double() - stats.sample.double()).T
    assert float(alike.output_error(quantized, T)) == pytest.approx(float(moved.square().sum()), rel=1e-4)


@pytest.mark.parametrize(("name", "granularity"), [("blocks.0.norm1.input", T), ("blocks.0.attn.softmax.input", H)])
def test_inputs_of_norms_and_softmax_are_weighted_by_the_gradient(known, name, granularity):
    stats = known[1][name]
    quantized = coarse(stats, granularity)
    weighted = (quantized.double() - stats.sample.double()).square() * stats.importance.double()
    expected = weighted.sum() if granularity is T else weighted.sum((0, 2, 3)).view(2, 1, 1)
    assert torch.allclose(stats.output_error(quantized, granularity).double(), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "granularity"),
    [
        *(("blocks.0.attn.qkv.weight", C), ("blocks.0.attn.qkv.input", C), ("patch_embed.proj.input", C)),
        *(("patch_embed.proj.weight", C), ("blocks.0.attn.matmul_av.rhs", H), ("blocks.0.attn.qkv.input", T)),
    ],
)
def test_value_error_is_in_the_scales_shape(known, name, granularity):
    stats = known[1][name]
    low, _ = stats.range(granularity)
    quantized = coarse(stats, granularity)
    error = stats.value_error(quantized, granularity)
    assert error.shape == low.shape
    square = (quantized.double() - stats.sample.double()).square()
    assert float(error.sum()) == pytest.approx(float(square.sum()), rel=1e-4)
    if low.dim():
        axis = square.dim() - low.dim()
        assert torch.allclose(error.flatten().double(), square.movedim(axis, 0).flatten(1).sum(1), rtol=1e-4)


def test_ranges_come_in_the_scales_shape(known):
    stats = known[1]
    assert stats["blocks.0.attn.qkv.input"].range(C)[0].shape == (16,)
    assert stats["blocks.0.attn.qkv.weight"].range(C)[0].shape == (48, 1)
    assert stats["patch_embed.proj.input"].range(C)[0].shape == (3, 1, 1)
    assert stats["patch_embed.proj.weight"].range(C)[0].shape == (16, 1, 1, 1)
    assert stats["blocks.0.attn.matmul_qk.lhs"].range(H)[0].shape == (2, 1, 1)
    assert all(s.range(T)[1].shape == () for s in stats.values())
    weight = stats["patch_embed.proj.weight"]
    assert torch.equal(weight.range(C)[1].flatten(), weight.sample.flatten(1).amax(1))


@pytest.mark.parametrize("q", [0.0, 0.01, 0.5, 0.9995, 1.0])
def test_quantile_equals_numpys(known, q):
    stats = known[1]["blocks.0.mlp.fc2.input"]
    assert float(stats.quantile(q)) == pytest.approx(np.quantile(stats.sample.double().numpy(), q), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("name", "granularity", "axes"),
    [
        ("blocks.0.attn.qkv.input", C, 0),
        ("blocks.0.attn.qkv.weight", C, 1),
        ("patch_embed.proj.input", C, (0, 2, 3)),
        ("blocks.0.attn.matmul_av.rhs", H, (0, 2, 3)),
    ],
)
def test_quantiles_of_each_scale_equal_numpys(known, name, granularity, axes):
    stats = known[1][name]
    got = stats.quantile(0.9, granularity)
    assert got.shape == stats.range(granularity)[0].shape
    want = np.quantile(stats.sample.double().numpy(), 0.9, axis=axes)
    assert np.allclose(got.flatten(), want, rtol=1e-5, atol=1e-7)


def test_sqnr_equals_equation_9_and_is_infinite_without_error(known):
    stats = known[1]["blocks.0.mlp.fc2.input"]
    quantized = coarse(stats, T)
    x, noise = stats.sample.double().numpy(), (quantized - stats.sample).double().numpy()
    assert stats.sqnr_db(quantized) == pytest.approx(10 * np.log10((x**2).sum() / (noise**2).sum()))
    assert stats.sqnr_db(stats.sample) == float("inf")


def test_smoothed_equals_the_statistics_of_the_smoothed_tensor():
    x = torch.randn(5, 7, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9)
    smoothing = Smoothing(torch.linspace(-3, 3, 8), torch.linspace(0.5, 4, 8))
    before = SiteStats.from_tensor(x)
    before.product = Product(before.sample.unsqueeze(0), torch.randn(1, 3, 8))
    after, direct = before.smoothed(smoothing), SiteStats.from_tensor((x - smoothing.shift) / smoothing.scale)
    for name in ("min", "max", "channel_min", "channel_max", "channel_mean", "sample", "channel_absmax"):
        assert torch.allclose(getattr(after, name), getattr(direct, name), atol=1e-6), name
    assert torch.equal(after.image_min, direct.min.expand(5))  # documented: images are no longer distinguished
    assert torch.equal(after.image_max, direct.max.expand(5))
    assert torch.allclose(after.product.lhs[0], direct.sample)
    assert torch.equal(before.sample, x.flatten(0, 1))


def test_from_tensor_of_activations_and_weights():
    x = torch.randn(5, 7, 8, generator=torch.Generator().manual_seed(0))
    stats = SiteStats.from_tensor(x)
    assert torch.equal(stats.image_max, x.flatten(1).amax(1))
    assert float(stats.image_min_mean) == pytest.approx(float(x.flatten(1).amin(1).mean()))
    assert torch.equal(stats.channel_min, x.flatten(0, 1).amin(0))
    site = Site("c.weight", SiteKind.CONV_WEIGHT, "c", "weight", (4, 3, 2, 2), channel_axis=0)
    w = torch.randn(4, 3, 2, 2)
    weight = SiteStats.from_tensor(w, site)
    assert torch.equal(weight.channel_max, w.flatten(1).amax(1))
    assert weight.image_min.shape == (1,)


def quantized_pair(known, module):
    """Both operands of an operation, and their values after coarse quantization."""
    left, right = (
        (known[f"{module}.lhs"], known[f"{module}.rhs"])
        if "matmul" in module
        else (known[f"{module}.input"], known[f"{module}.weight"])
    )
    return left, right, coarse(left, T), coarse(right, T)


OPERATIONS = [
    "patch_embed.proj",
    "blocks.0.attn.qkv",
    "blocks.0.attn.matmul_qk",
    "blocks.1.attn.matmul_av",
    "blocks.1.mlp.fc2",
]


@pytest.mark.parametrize("module", OPERATIONS)
def test_errors_with_a_quantized_operand_include_both_errors(known, module):
    left, right, left_hat, right_hat = quantized_pair(known[1], module)
    lhs, rhs = left.to_matrix(left_hat).double(), right.to_matrix(right_hat).double()
    product = left.product
    error = (lhs @ rhs.mT - product.lhs.double() @ product.rhs.double().mT).square() * product.importance.double()
    for ours, other, quantized, others in ((left, right, left_hat, right_hat), (right, left, right_hat, left_hat)):
        beside = ours.with_quantized_operand(other, others)
        assert beside.output_error(quantized, T).item() == pytest.approx(error.sum().item(), rel=1e-4)
        assert torch.allclose(beside.product.output, product.output, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("module", OPERATIONS)
def test_a_float_operand_changes_nothing(known, module):
    left, right, left_hat, _ = quantized_pair(known[1], module)
    beside = left.with_quantized_operand(right, right.sample)
    assert beside.output_error(left_hat, T).item() == pytest.approx(left.output_error(left_hat, T).item(), rel=1e-5)


@pytest.mark.parametrize("module", OPERATIONS)
def test_cosine_distance_against_float64(known, module):
    left, right, left_hat, right_hat = quantized_pair(known[1], module)
    lhs, rhs = left.to_matrix(left_hat).double(), right.to_matrix(right_hat).double()
    want, got = (left.product.lhs.double() @ left.product.rhs.double().mT).flatten(), (lhs @ rhs.mT).flatten()
    cosine = 1 - (want @ got / want.norm() / got.norm()).item()
    assert left.with_quantized_operand(right, right_hat).cosine_distance(left_hat, T).item() == pytest.approx(
        cosine, abs=1e-5
    )
    assert left.cosine_distance(left.sample, T).item() == pytest.approx(0, abs=1e-5)
    assert left.cosine_distance(torch.zeros_like(left.sample), T).item() == 1


def test_cosine_distance_is_independent_per_channel(known):
    stats = known[1]["blocks.0.attn.qkv.weight"]
    quantized = coarse(stats, C)
    out, moved = (stats.product.lhs[0].double() @ w.double().T for w in (stats.sample, quantized))
    want = 1 - (out * moved).sum(0) / (out.norm(dim=0) * moved.norm(dim=0))
    assert torch.allclose(stats.cosine_distance(quantized, C).flatten().double(), want, atol=1e-5)


PARTED = [*WITH_PRODUCT, "blocks.0.norm1.input", "blocks.0.attn.softmax.input"]


@pytest.mark.parametrize("name", PARTED)
def test_errors_of_parts_of_the_rows_add_up(known, name):
    """Tokens, patches, and slices of attention: the error of each row, and the sum over disjoint rows."""
    stats = known[1][name]
    quantized = coarse(stats, T)
    rows = stats.row_errors(quantized)
    places = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    assert len(rows) == (len(stats.sample) if not stats.site.kind.is_weight else stats.product.lhs.shape[1])
    total = 0.0
    for part in places.tensor_split(3):
        selected = stats.select_rows(part)
        part_values = quantized if stats.site.kind.is_weight else quantized[part]
        error = selected.output_error(part_values, T)
        assert float(error) == pytest.approx(float(rows[part].sum()), rel=1e-4)
        total += float(error)
    assert total == pytest.approx(float(stats.output_error(quantized, T)), rel=1e-4)


@pytest.mark.parametrize("module", OPERATIONS)
def test_selected_rows_keep_the_quantized_operand(known, module):
    left, right, left_hat, right_hat = quantized_pair(known[1], module)
    for ours, other, quantized, others in ((left, right, left_hat, right_hat), (right, left, right_hat, left_hat)):
        beside = ours.with_quantized_operand(other, others)
        rows = beside.row_errors(quantized)
        part = torch.arange(0, len(rows), 2)
        part_values = quantized if ours.site.kind.is_weight else quantized[part]
        assert float(beside.select_rows(part).output_error(part_values, T)) == pytest.approx(
            float(rows[part].sum()), rel=1e-4
        )
