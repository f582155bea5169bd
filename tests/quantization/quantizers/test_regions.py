"""The region-wise quantizer against MPTQ-ViT's section 3.2, sliced bit by bit in Python integers."""

import json
import math

import pytest
import torch
from hypothesis import given, strategies as st

from qplug import Region, RegionQuantizer


def three(step, m0, m1, bits, bound=None):
    """The regions of section 3.2: negative, small positive, large positive."""
    small, large = (1 << (bits - 2)) - 1, (1 << (bits - 1)) - 1
    bound = 1 << (m0 + bits - 2) if bound is None else bound
    return RegionQuantizer(
        step, (Region(-(1 << 30), 0, -small, 0), Region(0, m0, 0, small), Region(bound, m1, 0, large)), bits
    )


def slice_bits(q, m0, m1, bits, bound):
    """For each region: take a slice of the magnitude's bits, round by the first truncated bit, saturate."""
    if q < 0:
        return -min(-q, (1 << (bits - 2)) - 1)
    shift, stored = (m0, bits - 2) if q < bound else (m1, bits - 1)
    code = q >> shift
    if shift and (q >> (shift - 1)) & 1:
        code += 1
    return min(code, (1 << stored) - 1) << shift


CASES = st.tuples(st.integers(3, 8), st.integers(1, 7)).flatmap(
    lambda case: st.tuples(st.just(case[0]), st.integers(0, case[1] - 1), st.just(case[1]), st.booleans())
)


@given(CASES)
def test_values_equal_the_stored_bits(case):
    bits, m0, m1, as_printed = case
    bound = 1 << (m0 + bits - (3 if as_printed else 2))
    quantizer = three(1.0, m0, m1, bits, bound)
    integers = range(-(1 << bits), 1 << (bits + m1))  # x_{q,b} has a sign and bits + m1 − 1 more
    expected = [float(slice_bits(q, m0, m1, bits, bound)) for q in integers]
    assert quantizer(torch.tensor(list(integers), dtype=torch.float32)).tolist() == expected


def test_section_4_3_at_4_bits():
    quantizer = three(0.0515, 3, 5, 4)
    values = quantizer(torch.linspace(-2.0, 20.0, 200_001)).unique().tolist()
    assert [v for v in values if v < 0] == pytest.approx([-3 * 0.0515, -2 * 0.0515, -0.0515])
    assert len([v for v in values if v <= 0]) == 4
    assert sorted(v for v in values if v > 0)[:3] == pytest.approx([0.412, 0.824, 1.236], abs=1e-3)  # s1 = 0.4124 there
    assert max(values) == pytest.approx(11.5458, abs=0.02)  # 7 s2, s2 = 1.6494 in the paper from an s0 of more digits
    assert {v / 0.0515 % 32 < 1e-3 or v / 0.0515 % 32 > 31.999 for v in values if v > 1.3} == {True}


@given(CASES, st.lists(st.floats(-50, 50, width=32, allow_subnormal=False), min_size=1, max_size=40))
def test_monotone_idempotent_and_the_same_by_table(case, values):
    bits, m0, m1, _ = case
    quantizer = three(0.07, m0, m1, bits)
    x = torch.tensor(values, dtype=torch.float32)
    out = quantizer(x)
    assert torch.equal(quantizer.infer(x), out)
    assert torch.equal(quantizer(out), out)
    if m1 - m0 < bits:
        assert (quantizer(x.sort().values).diff() >= 0).all()


def test_distant_ratios_leave_a_gap_whose_values_become_zero():
    """As printed: region 3 represents values below s2/2 by its code 0, and region 2 ends before."""
    quantizer = three(1.0, 2, 5, 3)  # region 2: 0, 4; region 3 from 8: 0, 32, 64, 96
    assert quantizer(torch.tensor([7.0, 8.0, 15.0, 16.0])).tolist() == [4.0, 0.0, 0.0, 32.0]


@given(CASES, st.floats(0.0, 1.0))
def test_error_is_at_most_half_the_regions_step_inside_the_range(case, place):
    bits, m0, m1, _ = case
    step, large = 0.07, (1 << (bits - 1)) - 1
    x = torch.tensor(place * (large << m1) * step)
    fine = float(x) / step < (((1 << (bits - 2)) - 1) << m0)
    widest = step * 2 ** (m0 if fine else m1)
    assert abs(float(three(step, m0, m1, bits)(x)) - float(x)) <= (widest + step) / 2 + 1e-5


def test_too_many_base_integers_for_a_table_are_computed():
    quantizer = three(1e-4, 3, 12, 8)
    assert quantizer.most - quantizer.least >= 1 << 16
    x = torch.linspace(-1.0, 60.0, 10_001)
    assert torch.equal(quantizer.infer(x), quantizer(x))


def test_infer_accepts_any_layout_and_moves_the_table():
    quantizer = three(0.05, 3, 5, 4)
    x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    for view in (x, x.transpose(0, 2), x[:, ::2], x[..., :3], torch.tensor(0.4)):
        assert torch.equal(quantizer.infer(view), quantizer(view))
    assert torch.equal(x, before)


@pytest.mark.parametrize("bits", [4, 5, 8])
@pytest.mark.parametrize("elements", [1 << 19, (1 << 20) + 2, (1 << 19) + 1])
def test_large_tensors_are_looked_up_in_pairs_with_the_same_values(bits, elements):
    quantizer = three(0.05, 1, 3, bits)
    x = torch.randn(elements, generator=torch.Generator().manual_seed(0)).mul_(3.0)
    x[:3] = torch.tensor([torch.inf, -torch.inf, -0.0])
    before = x.clone()
    assert torch.equal(quantizer.infer(x), quantizer(x))
    assert (quantizer._pairs is not None) == (bits < 8 and elements % 2 == 0)
    assert torch.equal(x, before)
    if quantizer._pairs is not None:
        assert "_pairs" not in quantizer.state_dict()
        x[7] = torch.nan
        assert quantizer.infer(x).isnan().nonzero().tolist() == [[7]]


def test_gradients_pass_inside_and_stop_outside():
    quantizer = three(1.0, 3, 5, 4)  # −3 … 7·32
    x = torch.tensor([-9.0, -2.6, 0.2, 20.0, 200.0, 1000.0], requires_grad=True)
    out = quantizer(x)
    assert torch.allclose(out, quantizer(x.detach()))
    out.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]


@given(CASES, st.floats(2.0**-20, 10.0, width=32))
def test_both_ways_through_json_bit_by_bit(case, step):
    bits, m0, m1, _ = case
    quantizer = three(step, m0, m1, bits)
    again = RegionQuantizer.from_dict(json.loads(json.dumps(quantizer.to_dict(), allow_nan=False)))
    assert (again.bits, again.regions) == (quantizer.bits, quantizer.regions)
    assert torch.equal(again.step, quantizer.step)
    x = torch.linspace(-3 * step, 40 * step, 101)
    assert torch.equal(again(x), quantizer(x))


def test_storage_counts_codes_step_and_shifts():
    assert three(0.05, 3, 5, 4).storage_bits((10, 7)) == 70 * 4 + 32 + 3 * 8


def test_the_number_of_codes_fits_the_bits():
    for bits in range(3, 9):
        quantizer = three(1.0, 3, 6, bits)
        values = quantizer(torch.arange(-(1 << bits), 1 << (bits + 7), dtype=torch.float32)).unique()
        assert math.log2(len(values)) <= bits


@given(CASES)
def test_codes_are_indices_among_the_values(case):
    bits, m0, m1, as_printed = case
    quantizer = three(0.5, m0, m1, bits, 1 << (m0 + bits - (3 if as_printed else 2)))
    x = torch.arange(-(1 << bits), 1 << (bits + m1), dtype=torch.float32) * 0.5
    codes, values = quantizer.encode(x), quantizer.infer(x)
    assert torch.equal(quantizer.decode(codes), values)
    assert codes.unique().tolist() == list(range(len(values.unique())))
    assert codes.max() < 1 << bits


def test_more_values_than_codes_are_refused():
    quantizer = RegionQuantizer(1.0, (Region(0, 0, 0, 20),), 4)
    with pytest.raises(NotImplementedError, match="21 values do not fit 4 bits"):
        quantizer.encode(torch.ones(3))
