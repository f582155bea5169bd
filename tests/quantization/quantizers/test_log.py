"""The logarithmic quantizer: exact on its grid, monotone, and finer near 0 than a uniform one."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from qplug import LogQuantizer, QuantSpec, SiteStats, UniformQuantizer


@pytest.mark.parametrize("rate", [1, 2])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_grid_has_powers_and_zero(rate, bits):
    quantizer = LogQuantizer(0.75, rate, bits)
    codes = torch.arange((1 << bits) - 1)
    grid = torch.cat([0.75 * torch.exp2(-codes / rate), torch.zeros(1)])
    assert torch.equal(
        quantizer(grid[grid >= torch.finfo(torch.float32).tiny]), grid[grid >= torch.finfo(torch.float32).tiny]
    )
    assert quantizer(torch.zeros(1)) == 0
    assert quantizer(-grid[:1]) == 0
    assert quantizer(2 * grid[:1]) == grid[0]


@given(st.floats(0.01, 10), st.sampled_from([1, 2]), st.integers(3, 6), st.integers(0, 1000))
def test_against_the_papers_equation_in_float64(scale, rate, bits, seed):
    x = torch.rand(64, generator=torch.Generator().manual_seed(seed)).square() * scale
    want = np.round(-rate * np.log2(x.double().numpy() / np.float64(np.float32(scale))))
    values = np.where(want >= 2**bits - 1, 0.0, np.float64(np.float32(scale)) * 2.0 ** (-want / rate))
    near_a_tie = np.abs(-rate * np.log2(x.double().numpy() / scale) % 1.0 - 0.5) < 1e-4
    got = LogQuantizer(scale, rate, bits)(x).double().numpy()
    assert np.allclose(got[~near_a_tie], values[~near_a_tie], rtol=1e-5, atol=0)


def test_it_is_monotone_and_idempotent():
    x = torch.linspace(0, 1, 4097)
    out = LogQuantizer(1.0, 2, 4)(x)
    assert (out.diff() >= 0).all()
    assert torch.equal(LogQuantizer(1.0, 2, 4)(out), out)


def test_small_softmax_outputs_are_represented():
    scores = torch.randn(64, 197, generator=torch.Generator().manual_seed(0))
    stats = SiteStats.from_tensor(scores.softmax(-1))
    uniform = UniformQuantizer.from_range(stats.min, stats.max, QuantSpec(4))
    log = LogQuantizer(stats.max, 2, 4)
    loses = [((q.infer(stats.sample) - stats.sample).abs() / stats.sample).median().item() for q in (log, uniform)]
    assert loses[0] < 0.15  # measured: 0.10; half a step of √2 is 0.19 at most
    assert loses[1] == 1.0  # more than half of them become 0


def test_describe():
    assert LogQuantizer(1.0, 1, 4).describe() == "log 2 uint4"
    assert LogQuantizer(1.0, 2, 3).describe() == "log √2 uint3"


@given(st.floats(0.01, 10), st.sampled_from([1, 2]), st.integers(2, 8), st.integers(0, 1000))
def test_codes_decode_to_the_values(scale, rate, bits, seed):
    quantizer = LogQuantizer(scale, rate, bits)
    x = torch.randn(64, generator=torch.Generator().manual_seed(seed)) * scale
    codes = quantizer.encode(torch.cat([x, torch.zeros(1)]))
    assert codes[-1] == codes.max() == (1 << bits) - 1
    assert torch.equal(quantizer.decode(codes[:-1]), quantizer.infer(x))
