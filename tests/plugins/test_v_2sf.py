"""V-2SF: the figures of MPTQ-ViT's section 4.3, and the kinds of its sites."""

from __future__ import annotations

import pytest
import torch
from plugin_toys import activation, choose, gelu_data, make
from qplug_plugins.baseline import Hessian
from qplug_plugins.tsptq_vit.v_2sf import V2sf, two_scaled

from qplug.core.types import Granularity, QuantSpec, SiteKind


def softmax_data() -> torch.Tensor:
    x = torch.randn(8, 16, 40, generator=torch.Generator().manual_seed(0)) * 2
    return x.softmax(-1)


def test_the_figures_of_section_4_3():
    """Small factor 0.0693; large 8 times that, 0.5544; largest value 7·0.5544 = 3.8808; DeiT-S, 9th block, 4 bits."""
    quantizer = two_scaled(0.0693, 3, 4, signed=True)
    x = torch.linspace(-0.17, 12.4909, 200_001)
    values = quantizer(x).unique()
    assert (values <= 0).sum() == 3  # negative post-GELU values, which end at −0.17, keep 3 bins: −2, −1 and 0
    assert ((values >= 0) & (values < 0.25)).sum() == 4  # "4 bins in the small positive region"
    assert float(values[values > 0.25].min()) == pytest.approx(0.5544, abs=1e-6)
    assert float(values.max()) == pytest.approx(3.8808, abs=1e-6)
    assert (values > 0.25).sum() == 7
    torch.testing.assert_close(values[values > 0.25].diff(), torch.full((6,), 0.5544))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_the_codes_fit_the_bits(bits, signed):
    quantizer = two_scaled(1.0, bits - 1, bits, signed)
    low = -1000.0 if signed else 0.0
    codes, shift = quantizer.codes(torch.arange(low, float(quantizer.most) + 1))
    assert len(torch.stack([codes, shift]).unique(dim=1).T) <= 2**bits
    assert float(quantizer(torch.tensor(1e9))) == ((1 << (bits - 1)) - 1) << (bits - 1)


def test_the_ratio_of_the_paper_is_8_at_4_bits():
    choice = choose(make(V2sf, ratio="paper"), activation(gelu_data(), kind=SiteKind.POST_GELU), QuantSpec(4))
    assert [region.shift for region in choice.quantizer.regions] == [0, 3]
    assert "ratio = 8" in choice.reason


@pytest.mark.parametrize(("kind", "x"), [(SiteKind.POST_SOFTMAX, softmax_data()), (SiteKind.POST_GELU, gelu_data())])
@pytest.mark.parametrize("bits", [4, 6])
def test_it_loses_less_than_the_uniform_quantizer(kind, x, bits):
    weight = torch.randn(12, x.shape[-1], generator=torch.Generator().manual_seed(1))
    pair = activation(x, weight, kind=kind)
    errors = [
        float(
            pair[1].output_error(
                choose(make(t), pair, QuantSpec(bits)).quantizer(pair[1].sample), Granularity.PER_TENSOR
            )
        )
        for t in (Hessian, V2sf)
    ]
    assert errors[1] < errors[0]


def test_the_search_is_never_worse_than_the_ratio_of_the_paper():
    for x, kind in ((softmax_data(), SiteKind.POST_SOFTMAX), (gelu_data(), SiteKind.POST_GELU)):
        pair = activation(x, torch.randn(12, x.shape[-1]), kind=kind)
        errors = [
            float(
                pair[1].output_error(
                    choose(make(V2sf, ratio=ratio), pair, QuantSpec(4)).quantizer(pair[1].sample),
                    Granularity.PER_TENSOR,
                )
            )
            for ratio in ("search", "paper")
        ]
        assert errors[0] <= errors[1]


def test_it_takes_its_kinds_alone():
    softmax = activation(softmax_data(), kind=SiteKind.POST_SOFTMAX)
    gelu = activation(gelu_data(), kind=SiteKind.POST_GELU)
    only = make(V2sf, kinds=["post_softmax"])
    assert choose(only, softmax, QuantSpec(4)) is not None
    assert choose(only, gelu, QuantSpec(4)) is None
    assert choose(make(V2sf), activation(softmax_data()), QuantSpec(4)) is None
    assert choose(make(V2sf), softmax, QuantSpec(2)) is None
    assert choose(make(V2sf), softmax, QuantSpec(4, Granularity.PER_HEAD)) is None


def test_a_gelu_without_positive_outputs_is_left_to_the_next_technique():
    for x in (gelu_data().clamp(max=0.0), gelu_data().clamp(max=-1e-3)):
        assert choose(make(V2sf), activation(x, kind=SiteKind.POST_GELU), QuantSpec(4)) is None
