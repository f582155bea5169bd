"""Binary coding against float64 oracles, and properties of its alternation."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from mr_biq_toys import heavy, randn
from qplug_plugins.mr_biq.alternation import alternate, least_squares
from qplug_plugins.mr_biq.coding import Format, greedy, nearest, powers, signs, sums
from qplug_plugins.mr_biq.fitting import fit_binary, fit_grid, in_groups
from qplug_plugins.mr_biq.quantizer import BinaryCodingQuantizer
from qplug_plugins.mr_biq.rows import SortedRows, sums_by_code

from qplug import InputError


def error(w, scales, basis):
    """(rows,) Σ(ŵ − w)² in float64, every weight at the nearest level, over all levels."""
    levels = scales.double().numpy() @ basis.numpy().T
    distance = np.abs(w.double().numpy()[:, :, None] - levels[:, None, :])
    return np.square(distance.min(2)).sum(1)


def alternated(w, scales, codes):
    """(scales, codes of their nearest levels) after the alternation from these scales and codes, in float64."""
    form = Format(scales.shape[1])
    best, _ = alternate(SortedRows(w), scales, form, sums_by_code(w.double(), codes, 1 << form.bits))
    return best, nearest(w.double(), sums(best))


def oracle_alternate(row, codes, bits, rounds):
    """One row's alternation from its codes, with ±1 columns, ``lstsq`` and all 2^q sums: (alphas, squared error)."""
    table = np.array(list(product([-1.0, 1.0], repeat=bits)))
    best = None
    for _ in range(rounds):
        alphas = np.linalg.lstsq(table[codes], row, rcond=1e-10)[0]
        sums = table @ alphas
        codes = np.abs(row[:, None] - sums).argmin(1)
        now = np.square(row - sums[codes]).sum()
        if best is not None and now >= best[1] * (1 - 1e-9):
            break
        best = alphas, now
    return best


WEIGHTS = st.builds(
    lambda rows, n, tail, shift, scale, seed: (randn(rows, n, seed=seed).double() ** tail + shift) * scale,
    st.integers(1, 4),
    st.integers(1, 40),
    st.sampled_from([1, 3, 5]),
    st.sampled_from([0.0, 0.5, 3.0]),
    st.sampled_from([1e-4, 1.0, 300.0]),
    st.integers(0, 999),
)


def test_codes_are_the_bits_of_their_number():
    assert signs(2).tolist() == [[-1, -1], [-1, 1], [1, -1], [1, 1]]
    assert Format(3, uniform=True, offset=True).basis().tolist() == [[n, 1] for n in (-7, -5, -3, -1, 1, 3, 5, 7)]
    assert torch.equal(signs(4) @ powers(4), Format(4, uniform=True).basis()[:, 0])


def test_greedy_in_float64():
    w = heavy(3, 50).double()
    alphas, codes = greedy(w, 3)
    for row, got, code in zip(w.numpy(), alphas.numpy(), codes.numpy(), strict=True):
        rest, want, bits = row.copy(), [], 0
        for _ in range(3):
            sign = np.where(rest >= 0, 1.0, -1.0)
            want.append(np.abs(rest).mean())
            rest, bits = rest - want[-1] * sign, bits * 2 + (sign > 0)
        np.testing.assert_allclose(got, want, rtol=1e-12)
        assert (code == bits).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("draw", [randn, heavy])
def test_the_alternation_in_float64(bits, draw):
    w = draw(6, 200, seed=bits).double()
    start, codes = greedy(w, bits)
    alphas, _ = alternated(w, start, codes)
    for row, code, got, end in zip(
        w.numpy(), codes.numpy(), alphas.numpy(), error(w, alphas, signs(bits)), strict=True
    ):
        want, squared = oracle_alternate(row, code, bits, 100)
        np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-12)
        assert end == pytest.approx(squared, rel=1e-9)


@pytest.mark.parametrize(("rows", "n"), [(4, 300), (500, 16), (500, 9)])
def test_least_squares_leaves_a_residual_that_no_bit_explains(rows, n):
    """At the end of the alternation Bᵀ(w − Bα) = 0, and no other sum is nearer to any weight."""
    w = heavy(rows, n).double()
    alphas, codes = alternated(w, *greedy(w, 3))
    again, _ = alternated(w, alphas, codes)
    rest = w - sums(alphas).gather(1, codes)
    explained = torch.einsum("rnq,rn->rq", signs(3)[codes], rest)
    assert explained.abs().max() < 1e-9 * w.abs().sum(1).max()
    assert torch.equal(again, alphas)


@pytest.mark.slow
@given(WEIGHTS, st.integers(1, 4))
def test_alternating_is_never_above_greedy(w, bits):
    start, codes = greedy(w, bits)
    fixed = (sums(start).gather(1, codes) - w).square().sum(1).numpy()
    bound = error(w, start, signs(bits))
    slack = 1e-12 * w.square().sum(1).numpy()
    assert (bound <= fixed + slack).all()
    assert (error(w, alternated(w, start, codes)[0], signs(bits)) <= bound + slack).all()
    assert (error(w, fit_binary(w, bits)[0], signs(bits)) <= bound + slack).all()


@pytest.mark.slow
@given(WEIGHTS, st.integers(1, 4))
def test_non_uniform_is_never_above_the_least_squares_of_a_uniform_grid_without_offset(w, bits):
    step, none = fit_grid(w, bits, offset=False)
    assert none is None
    slack = 1e-12 * w.square().sum(1).numpy()
    ends = error(w, fit_binary(w, bits)[0], signs(bits)), error(w, step, Format(bits, uniform=True).basis())
    assert (ends[0] <= ends[1] + slack).all()


@pytest.mark.slow
@given(WEIGHTS, st.integers(1, 4))
def test_with_an_offset_it_is_never_above_greedy_the_uniform_grid_or_itself_without(w, bits):
    basis = Format(bits, offset=True).basis()
    ends = [error(w, torch.cat(fit_binary(w, bits, refine, offset=True), 1), basis) for refine in (True, False)]
    ends.append(error(w, torch.cat(fit_grid(w, bits), 1), Format(bits, uniform=True, offset=True).basis()))
    ends.append(error(w, fit_binary(w, bits)[0], signs(bits)))
    slack = 1e-12 * w.square().sum(1).numpy()
    assert all((ends[0] <= end + slack).all() for end in ends[1:])


@given(WEIGHTS, st.integers(2, 4))
def test_the_uniform_fit_is_never_above_the_whole_range_or_its_own_start(w, bits):
    basis = Format(bits, uniform=True, offset=True).basis()
    low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    whole = torch.cat([(high - low) / (2 * (2**bits - 1)), (high + low) / 2], 1)
    ends = [error(w, whole, basis)]
    ends += [error(w, torch.cat(fit_grid(w, bits, refine=refine), 1), basis) for refine in (False, True)]
    slack = 1e-12 * w.square().sum(1).numpy()
    assert all((later <= earlier + slack).all() for earlier, later in pairwise(ends))


@pytest.mark.parametrize(("draw", "most"), [(randn, 0.4), (heavy, 0.12)])
def test_the_gain_of_alternation_at_4_bits(draw, most):
    w = draw(16, 512)
    ends = [error(w, fit_binary(w, 4, refine)[0], signs(4)).sum() for refine in (True, False)]
    assert ends[0] < most * ends[1]  # measured: 0.33 and 0.08


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "w",
    [
        torch.zeros(2, 5),
        torch.full((1, 7), -0.3),
        torch.tensor([[0.7], [-0.2]]),
        torch.tensor([[1.0, 1.0, -1.0, -1.0]]),
    ],
    ids=["zeros", "constant", "one weight", "two values"],
)
def test_rows_with_singular_least_squares_are_coded_exactly(w, bits):
    for with_offset in (False, True):
        alphas, offset = fit_binary(w, bits, offset=with_offset)
        assert alphas.isfinite().all()
        assert torch.allclose(BinaryCodingQuantizer(alphas, offset)(w) if bits > 1 else w, w, rtol=1e-6, atol=0)
    step, offset = fit_grid(w, bits)
    assert step.isfinite().all()
    assert error(w, torch.cat([step, offset], 1), Format(bits, True, True).basis()).max() < 1e-12


def test_coinciding_codes_share_their_scale():
    """w = (α1 + α2)·b alone is known; the shortest solution has a level at 0, where the next round finds 0.4."""
    w, codes = torch.tensor([[3.0, 3.1, -3.0, -3.1, 0.4]]).double(), torch.tensor([[3, 3, 0, 0, 3]])
    alphas = least_squares(*sums_by_code(w, codes, 4), signs(2))
    assert torch.allclose(alphas, w.abs().mean().expand(1, 2) / 2, rtol=1e-12)
    alphas, _ = alternated(w, torch.tensor([[3.0, 0.0]]).double(), codes)
    assert error(w, alphas, signs(2)) == pytest.approx(4 * 0.05**2, rel=1e-5)


@given(WEIGHTS, st.integers(1, 4), st.integers(0, 99))
def test_nearest_is_the_nearest_of_all_sums(w, bits, seed):
    scales = randn(len(w), bits, seed=seed).double() * float(w.abs().max())
    levels = sums(scales)
    got = (levels.gather(1, nearest(w, levels)) - w).abs()
    assert torch.equal(got, (levels.unsqueeze(1) - w.unsqueeze(2)).abs().amin(2))


def test_groups_are_neighbours_along_the_inputs_of_one_channel():
    weight = torch.arange(24.0).view(2, 3, 2, 2)
    assert in_groups(weight, 2, 4).tolist() == weight.view(6, 4).tolist()
    assert in_groups(weight, 2, None).shape == (2, 12)
    assert in_groups(weight, 1, None).shape == (1, 24)
    with pytest.raises(InputError, match="groups of 5 do not divide the 12 weights of an output channel"):
        in_groups(weight, 2, 5)


@given(WEIGHTS, st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_levels_in_order_are_those_of_the_codes(w, bits, offset, seed):
    """Also where alphas are negative, in any order, or equal; and uniform grids need no sorting."""
    for form in (Format(bits, offset=offset), Format(bits, uniform=True, offset=offset)):
        scales = randn(len(w), form.basis().shape[1], seed=seed).double().round(decimals=1)
        levels, codes = form.ordered(scales)
        assert (levels.diff(dim=1) >= 0).all()
        if codes is None:
            scales[:, 0].abs_()
            codes = torch.arange(1 << bits).expand_as(levels)
        assert torch.equal(codes.sort(dim=1).values, torch.arange(1 << bits).expand_as(levels))
        assert torch.allclose(levels, (scales @ form.basis().T).gather(1, codes), atol=1e-12)


@given(WEIGHTS, st.integers(1, 8))
def test_rounding_to_a_grid_loses_what_cutting_at_its_levels_loses(w, bits):
    rows, top = SortedRows(w), (1 << bits) - 1
    step, middle = w.abs().amax(1, keepdim=True) / top * 0.7, w.mean(1, keepdim=True)
    odd = torch.arange(-top, top + 1, 2).double()
    cut = rows.split(middle + step * odd)[2]
    assert torch.allclose(rows.grid_error(step, middle, bits), cut, rtol=1e-6, atol=1e-12 * float(w.square().sum()))


def test_the_start_of_an_alternation_is_not_modified():
    w = heavy(2, 30).double()
    start, codes = greedy(w, 3)
    before = start.clone()
    assert not torch.equal(alternated(w, start, codes)[0], before)
    assert torch.equal(start, before)
