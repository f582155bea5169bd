"""The uniform quantizer: exactness on its grid, the paper's equations in float64, and properties."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from qplug import Granularity, QuantSpec, UniformQuantizer
from qplug.quantization.quantizers import integer_range, round_ste

BITS = st.integers(2, 8)
FLOATS = st.floats(-100.0, 100.0, width=32, allow_subnormal=False)
LISTS = st.lists(FLOATS, min_size=1, max_size=40)


@st.composite
def fitted(draw):
    """A quantizer of any kind, and values inside and outside its range."""
    low, high = sorted((draw(FLOATS), draw(FLOATS)))
    if high - low < 1e-3:
        high = low + 1.0
    symmetric, zero_point = draw(st.sampled_from([(True, "integer"), (False, "integer"), (False, "float")]))
    spec = QuantSpec(draw(BITS), Granularity.PER_TENSOR, symmetric, zero_point)
    quantizer = UniformQuantizer.from_range(torch.tensor(low), torch.tensor(high), spec)
    return quantizer, torch.tensor(draw(LISTS), dtype=torch.float32)


def grid(quantizer):
    """Every value that the quantizer can return."""
    return (torch.arange(quantizer.low, quantizer.high + 1) - quantizer.zero_point) * quantizer.scale


@pytest.mark.parametrize(
    ("bits", "signed", "ends"),
    [(2, True, (-2, 1)), (4, True, (-8, 7)), (8, False, (0, 255)), (16, True, (-32768, 32767))],
)
def test_integer_range_is_that_of_twos_complement(bits, signed, ends):
    assert integer_range(bits, signed) == ends


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("zero_point", [None, 1.0])
@pytest.mark.parametrize("signed", [True, False])
def test_integers_inside_the_range_are_exact_and_others_saturate(bits, zero_point, signed):
    zero = None if zero_point is None else torch.tensor(zero_point)
    quantizer = UniformQuantizer(torch.tensor(1.0), zero, bits, signed)
    integers = grid(quantizer)
    assert torch.equal(quantizer(integers), integers)
    assert torch.equal(quantizer(integers[-1] + torch.tensor([1.0, 1e6])), integers[-1].expand(2))
    assert torch.equal(quantizer(integers[0] - torch.tensor([1.0, 1e6])), integers[0].expand(2))


def test_halves_round_to_even():
    quantizer = UniformQuantizer(torch.tensor(0.5), None, 4, True)
    assert quantizer(torch.tensor([0.25, 0.75, 1.25, -0.25, -0.75])).tolist() == [0.0, 1.0, 1.0, 0.0, -1.0]


@given(fitted())
def test_values_equal_equations_2_and_3_in_float64(case):
    quantizer, x = case
    s, z = float(quantizer.scale), float(quantizer.zero_point)
    place = x.double().numpy() / s + z
    expected = s * (np.clip(np.rint(place), quantizer.low, quantizer.high) - z)
    clear = np.abs(np.abs(place - np.floor(place)) - 0.5) > 1e-3  # float32 may round a tie to the other side
    out = quantizer(x).double().numpy()
    assert np.allclose(out[clear], expected[clear], rtol=1e-6, atol=1e-6 * s)
    assert np.all(np.abs(out - expected) <= s * 1.001)


@given(fitted())
def test_idempotent_monotone_and_on_the_grid(case):
    quantizer, x = case
    out = quantizer(x)
    assert torch.equal(quantizer(out), out)
    assert torch.isin(out, grid(quantizer)).all()
    ordered = quantizer(x.sort().values)
    assert (ordered.diff() >= 0).all()


@given(st.data(), BITS, st.booleans())
def test_error_is_at_most_half_a_step_inside_the_range(data, bits, symmetric):
    x = torch.tensor(data.draw(LISTS), dtype=torch.float32)
    if float(x.abs().max()) < 1e-6:
        x = x + 1.0
    quantizer = UniformQuantizer.from_range(x.min(), x.max(), QuantSpec(bits, symmetric=symmetric))
    assert ((quantizer(x) - x).abs() <= quantizer.scale * 0.5001 + 1e-6).all()


@given(fitted())
def test_infer_is_forward_bit_by_bit_and_so_is_forward_with_gradients(case):
    quantizer, x = case
    out = quantizer(x)
    assert torch.equal(quantizer.infer(x), out)
    assert torch.equal(quantizer(x.clone().requires_grad_(True)).detach(), out)


@given(fitted())
def test_both_ways_through_json_bit_by_bit(case):
    quantizer, x = case
    again = UniformQuantizer.from_dict(json.loads(json.dumps(quantizer.to_dict(), allow_nan=False)))
    assert (again.bits, again.signed, again.symmetric) == (quantizer.bits, quantizer.signed, quantizer.symmetric)
    assert torch.equal(again.scale, quantizer.scale)
    assert torch.equal(again.zero_point, quantizer.zero_point)
    assert torch.equal(again(x), quantizer(x))


def test_many_scales_survive_json_in_their_shape():
    scale = torch.rand(6, 1, 1, generator=torch.Generator().manual_seed(0)) + 1e-9
    quantizer = UniformQuantizer(scale, torch.arange(6.0).view(6, 1, 1), 8, False)
    again = UniformQuantizer.from_dict(json.loads(json.dumps(quantizer.to_dict())))
    assert torch.equal(again.scale, scale)
    assert torch.equal(again.zero_point, quantizer.zero_point)


def test_gradients_pass_inside_and_stop_outside():
    quantizer = UniformQuantizer(torch.tensor(0.5), None, 3, True)  # −2 … 1.5
    x = torch.tensor([-5.0, -2.2, -2.0, -1.1, 0.0, 0.3, 1.5, 1.6, 9.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    unsigned = torch.tensor([-0.9, 0.0, 0.1], requires_grad=True)
    UniformQuantizer(torch.tensor(0.5), None, 3, False)(unsigned).sum().backward()
    assert unsigned.grad.tolist() == [0.0, 1.0, 1.0]
    y = torch.tensor([0.2, 1.8], requires_grad=True)
    round_ste(y).sum().backward()
    assert y.grad.tolist() == [1.0, 1.0]


@given(FLOATS, FLOATS, BITS)
def test_asymmetric_represents_zero_exactly(one, other, bits):
    low, high = sorted((one, other))
    quantizer = UniformQuantizer.from_range(torch.tensor(low), torch.tensor(high), QuantSpec(bits, symmetric=False))
    assert float(quantizer(torch.zeros(()))) == 0.0
    assert float(quantizer.zero_point) == round(float(quantizer.zero_point))
    assert 0 <= float(quantizer.zero_point) <= quantizer.high


@given(FLOATS, FLOATS, BITS)
def test_q_mlps_equations_1_5_and_6_in_float64(one, other, bits):
    """Q-MLP's integers start at −2^(k−1), ours at 0; the float zero point is Eq. 1 without rounding."""
    r_min, r_max = sorted((np.float64(one), np.float64(other)))
    if r_max - r_min < 1e-2:
        r_max = r_min + 1.0
    low, high = torch.tensor(r_min, dtype=torch.float32), torch.tensor(r_max, dtype=torch.float32)
    quantizer = UniformQuantizer.from_range(low, high, QuantSpec(bits, symmetric=False, zero_point="float"))
    scale = (r_max - r_min) / (2**bits - 1)
    zero = 2 ** (bits - 1) - 1 - r_max / scale
    assert float(quantizer.scale) == pytest.approx(scale, rel=1e-4)
    assert float(quantizer.zero_point) - 2 ** (bits - 1) == pytest.approx(zero, rel=1e-3, abs=1e-3)
    np.testing.assert_allclose(quantizer(torch.stack([low, high])), [r_min, r_max], atol=scale / 100 + 1e-4)

    held = UniformQuantizer.from_range(low, high, QuantSpec(bits, symmetric=False))
    r_min, r_max = min(r_min, 0.0), max(r_max, 0.0)  # zero has an integer only where the range holds it
    scale = (r_max - r_min) / (2**bits - 1)
    place = 2 ** (bits - 1) - 1 - r_max / scale
    assert float(held.scale) == pytest.approx(scale, rel=1e-4)
    assert abs(float(held.zero_point) - 2 ** (bits - 1) - place) <= 0.501
    if r_min < 0:
        symmetric = UniformQuantizer.from_range(low, high, QuantSpec(bits))
        assert float(symmetric.scale) == pytest.approx(max(abs(r_max), abs(r_min)) / (2 ** (bits - 1) - 1), rel=1e-6)


def test_a_float_zero_point_does_not_widen_the_range():
    low, high = torch.tensor([[3.0], [-1.0], [2.0]]), torch.tensor([[4.5], [0.4], [2.0]])
    spec = QuantSpec(4, Granularity.PER_CHANNEL, symmetric=False, zero_point="float")
    quantizer = UniformQuantizer.from_range(low, high, spec)
    torch.testing.assert_close(quantizer.scale, torch.tensor([[0.1], [1.4 / 15], [2 / 15]]))  # a constant: from 0 to it
    torch.testing.assert_close(quantizer.zero_point, torch.tensor([[-30.0], [15 / 1.4], [0.0]]))
    x = torch.cat([low, high], 1)
    torch.testing.assert_close(quantizer(x), x)
    assert quantizer.describe() == "uniform uint4 asymmetric float zero ×3"
    assert torch.equal(quantizer.decode(quantizer.encode(x)), quantizer.infer(x))


def test_symmetric_uses_the_larger_end_and_asymmetric_the_width():
    low, high = torch.tensor(-0.5), torch.tensor(7.0)
    assert float(UniformQuantizer.from_range(low, high, QuantSpec(4)).scale) == 1.0
    assert float(UniformQuantizer.from_range(low, high, QuantSpec(4, symmetric=False)).scale) == 0.5


def test_unsigned_without_negative_values():
    quantizer = UniformQuantizer.from_range(torch.tensor(0.0), torch.tensor(15.0), QuantSpec(4))
    assert not quantizer.signed
    assert float(quantizer.scale) == 1.0
    assert quantizer(torch.arange(16.0)).tolist() == list(range(16))
    assert UniformQuantizer.from_range(torch.tensor([0.0, -0.1]), torch.ones(2), QuantSpec(4)).signed


@pytest.mark.parametrize("symmetric", [True, False])
def test_an_empty_range_maps_zero_to_zero(symmetric):
    zero = torch.zeros(3, 1)
    quantizer = UniformQuantizer.from_range(zero, zero, QuantSpec(4, symmetric=symmetric))
    assert torch.equal(quantizer(torch.zeros(3, 5)), torch.zeros(3, 5))
    assert quantizer(torch.ones(3, 5)).abs().max() < 1e-30


@pytest.mark.parametrize("shape", [(4, 1), (4, 1, 1, 1)])
def test_channels_are_quantized_independently(shape):
    x = torch.randn(4, *[3] * (len(shape) - 1), generator=torch.Generator().manual_seed(1)) * torch.arange(1, 5).view(
        shape
    )
    flat = x.flatten(1)
    whole = UniformQuantizer.from_range(flat.amin(1).view(shape), flat.amax(1).view(shape), QuantSpec(4))
    for row, out in zip(x, whole(x), strict=True):
        alone = UniformQuantizer.from_range(-row.abs().max(), row.abs().max(), QuantSpec(4))
        assert torch.equal(alone(row), out)


def test_scaled_widens_the_range_and_keeps_the_integers():
    quantizer = UniformQuantizer(torch.tensor(0.1), torch.tensor(3.0), 4, False)
    wider = quantizer.scaled(torch.tensor(2.0))
    assert torch.equal(grid(wider), (torch.arange(16) - 3.0) * (torch.tensor(0.1) * 2.0))
    assert (wider.bits, wider.signed, wider.symmetric) == (4, False, False)


@pytest.mark.parametrize(
    ("scale", "zero_point", "expected"),
    [
        (torch.tensor(0.1), None, 60 * 4 + 32),
        (torch.full((5, 1), 0.1), None, 60 * 4 + 5 * 32),
        (torch.tensor(0.1), torch.tensor(3.0), 60 * 4 + 2 * 32),
        (torch.full((5, 1), 0.1), torch.zeros(5, 1), 60 * 4 + 10 * 32),
    ],
)
def test_storage_counts_codes_scales_and_zero_points(scale, zero_point, expected):
    assert UniformQuantizer(scale, zero_point, 4, zero_point is None).storage_bits((5, 12)) == expected


@settings(max_examples=20)
@given(fitted())
def test_infer_does_not_change_its_input_and_accepts_any_layout(case):
    quantizer, x = case
    x = x.repeat(6).view(2, 3, -1).transpose(0, 2)
    before = x.clone()
    out = quantizer.infer(x)
    assert torch.equal(x, before)
    assert torch.equal(out, quantizer(x.contiguous()))


@given(fitted())
def test_codes_start_at_zero_and_decode_to_the_values(case):
    quantizer, x = case
    codes = quantizer.encode(x)
    integers = np.round(x.double().numpy() / quantizer.scale.double().numpy() + quantizer.zero_point.numpy())
    near = np.abs(integers - codes.numpy() - quantizer.low)
    inside = (integers >= quantizer.low) & (integers <= quantizer.high)
    assert (near[inside] <= 1).all()  # float32 may round a tie, or what lies next to it, to the other side
    assert torch.equal(quantizer.decode(codes), quantizer.infer(x))
    every = torch.arange(1 << quantizer.bits)
    assert torch.equal(quantizer.decode(every), grid(quantizer))
    assert torch.equal(quantizer.encode(grid(quantizer)), every.int())


def test_codes_of_several_scales():
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    spec = QuantSpec(5, Granularity.PER_CHANNEL, False)
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    quantizer = UniformQuantizer.from_range(low, high, spec)
    assert torch.equal(quantizer.decode(quantizer.encode(weight)), quantizer.infer(weight))
    assert quantizer.encode(weight).amax(1).tolist() == [31, 31, 31]
