"""The quantizer of binary coding, and the technique that creates it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from mr_biq_toys import C, coded, heavy, randn
from plugin_toys import choose, make, weight_site
from qplug_plugins.mr_biq import BinaryCoding
from qplug_plugins.mr_biq.quantizer import BinaryCodingQuantizer

from qplug import InputError, QuantSpec, Site, SiteKind
from qplug.testing.quantizers import check_quantizer


@pytest.mark.parametrize("parameters", [{}, {"uniform": True}, {"offset": True}, {"group_size": 9}, {"refine": False}])
@pytest.mark.parametrize("shape", [(6, 36), (6, 4, 3, 3)])
@pytest.mark.parametrize("bits", [2, 4, 6])
def test_the_quantizer_keeps_its_contract(parameters, shape, bits):
    weight = heavy(*shape) * 0.1
    quantizer = coded(weight, bits, **parameters).quantizer
    check_quantizer(quantizer, weight)
    out = quantizer(weight)
    assert torch.equal(quantizer(out), out)
    assert torch.equal(quantizer.decode(quantizer.encode(weight)), out)
    assert 0 <= int(quantizer.encode(weight).min()) <= int(quantizer.encode(weight).max()) < 1 << bits
    rows = weight.reshape(len(quantizer.alphas), -1)
    assert all(len(row.unique()) <= 1 << bits for row in out.reshape(rows.shape))
    levels = quantizer.levels().double().numpy()
    want = np.abs(levels[:, None] - rows.double().numpy()[:, :, None]).min(2)
    np.testing.assert_allclose((out.reshape(rows.shape) - rows).abs().numpy(), want, atol=1e-7)


@settings(max_examples=200)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=5),
    st.one_of(st.none(), st.floats(-1e3, 1e3, width=32)),
)
def test_every_sum_is_quantized_to_itself(alphas, offset):
    """Also where sums coincide, are neighbouring floats, or come from alphas in any order and of any sign."""
    offset = None if offset is None else torch.tensor([[offset]])
    quantizer = BinaryCodingQuantizer(torch.tensor([alphas]), offset)
    levels = quantizer.levels()
    assert torch.equal(quantizer(levels), levels)
    again = BinaryCodingQuantizer.from_dict(json.loads(json.dumps(quantizer.to_dict())))
    assert torch.equal(again.levels(), levels)


def test_neighbouring_floats_stay_apart():
    one = torch.ones(())
    above = torch.nextafter(one, torch.tensor(2.0))
    half = (above - one) / 2
    quantizer = BinaryCodingQuantizer(torch.tensor([[1.0, float(half)]]))
    assert torch.equal(quantizer(quantizer.levels()), quantizer.levels())


def test_gradients_pass_between_the_outermost_sums():
    quantizer = BinaryCodingQuantizer(torch.tensor([[2.0, 1.0]]))
    x = torch.tensor([[-4.0, -2.9, 0.0, 2.9, 4.0]], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [[0, 1, 1, 1, 0]]


def test_storage_counts_codes_scales_and_offsets():
    weight = randn(8, 24)
    assert coded(weight).quantizer.storage_bits((8, 24)) == 8 * 24 * 3 + 32 * 8 * 3
    assert coded(weight, group_size=6).quantizer.storage_bits((8, 24)) == 8 * 24 * 3 + 32 * 8 * 4 * 3
    assert coded(weight, uniform=True).quantizer.storage_bits((8, 24)) == 8 * 24 * 3 + 32 * 8 * 2
    assert coded(weight, offset=True).quantizer.storage_bits((8, 24)) == 8 * 24 * 3 + 32 * 8 * 4


def test_the_description():
    weight = randn(8, 24)
    assert coded(weight).quantizer.describe() == "binary coding 3 bit ×8"
    assert coded(weight, offset=True).quantizer.describe() == "binary coding 3 bit with offset ×8"
    assert coded(weight, 2, uniform=True).quantizer.describe() == "uniform binary coding 2 bit with offset ×8"
    assert coded(weight, group_size=12).quantizer.describe() == "binary coding 3 bit by 12 ×16"


def test_a_plan_restores_the_quantizer_by_its_kind():
    from qplug.hooks.registry import installed
    from qplug.quantization.plan import quantizer_of

    quantizer = coded(randn(3, 8)).quantizer
    again = quantizer_of(json.loads(json.dumps(quantizer.to_dict())), installed().quantizers)
    assert torch.equal(again.alphas, quantizer.alphas)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3),), "expected alphas"),
        ((torch.ones(3, 2), torch.ones(3)), "offset"),
        ((torch.ones(3, 9),), "at most 8 bits"),
        ((torch.ones(3, 1),), "2 to 8 bits"),
        ((torch.full((3, 2), torch.nan),), "finite"),
        ((torch.ones(3, 2), None, None, True), "twice the next"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        BinaryCodingQuantizer(*arguments)


def test_a_weight_of_other_rows_is_refused():
    with pytest.raises(InputError, match=r"expected a weight with 3 rows of scales, received .* with 4 rows"):
        BinaryCodingQuantizer(torch.ones(3, 2))(randn(4, 5))
    with pytest.raises(InputError, match=r"expected a weight with 3 rows of scales, received .* with 8 rows"):
        BinaryCodingQuantizer(torch.ones(3, 2), None, 4)(randn(4, 8))


# the technique


def test_it_takes_weights_only_and_refuses_too_many_bits():
    pair = weight_site(randn(4, 8), randn(10, 8))
    activation = Site("layer.input", SiteKind.LINEAR_INPUT, "layer", "input", (8,))
    assert choose(make(BinaryCoding), (activation, pair[1]), QuantSpec(4)) is None
    assert choose(make(BinaryCoding), pair, QuantSpec(4, C)).reason == "greedy, alternated"
    assert choose(make(BinaryCoding), pair, QuantSpec(4)).quantizer.alphas.shape == (1, 4)
    with pytest.raises(InputError, match="at most 8 bits"):
        choose(make(BinaryCoding), pair, QuantSpec(9, C))


def test_groups_lose_less_than_whole_rows():
    weight = randn(8, 64) * torch.exp(randn(8, 8, seed=1)).repeat_interleave(8, 1)
    ends = [
        float((coded(weight, **parameters).quantizer(weight) - weight).square().sum())
        for parameters in ({"group_size": 8}, {})
    ]
    assert ends[0] < 0.3 * ends[1]  # measured: 0.15


def test_uniform_has_equal_steps_and_follows_a_shifted_row():
    weight = randn(4, 200) * 0.1 + 3.0
    even = coded(weight, 4, uniform=True).quantizer
    steps = even.levels().double().diff(dim=1)
    assert torch.allclose(steps, steps[:, :1].expand_as(steps), rtol=1e-4)
    others = [coded(weight, 4, offset=offset).quantizer for offset in (False, True)]
    ends = [float((q(weight) - weight).square().sum()) for q in (even, *others)]
    assert ends[2] < ends[0] < 0.4 * ends[1]  # measured: 0.28; without an offset, half of the sums are far away
