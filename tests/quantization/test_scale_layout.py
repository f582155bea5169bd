"""Elements that share a scale, for every granularity and for blocks."""

import pytest
import torch
from hypothesis import given, strategies as st

from qplug import Granularity, Site, SiteKind
from qplug.quantization.scale_layout import ScaleLayout

WEIGHT = Site("a.weight", SiteKind.CONV_WEIGHT, "a", "weight", (4, 3, 2, 2), channel_axis=0)
HEADS = Site("m.lhs", SiteKind.QUERY, "m", "lhs", (2, 5, 4), channel_axis=-1, head_axis=-3)


@pytest.mark.parametrize(
    ("site", "granularity", "tensor", "scales"),
    [
        (WEIGHT, Granularity.PER_TENSOR, (4, 3, 2, 2), ()),
        (WEIGHT, Granularity.PER_CHANNEL, (4, 3, 2, 2), (4, 1, 1, 1)),
        (WEIGHT, Granularity.PER_HEAD, (4, 3, 2, 2), ()),
        (HEADS, Granularity.PER_CHANNEL, (7, 2, 5, 4), (4,)),
        (HEADS, Granularity.PER_HEAD, (7, 2, 5, 4), (2, 1, 1)),
    ],
)
def test_the_shape_of_the_scales(site, granularity, tensor, scales):
    layout = ScaleLayout.of(granularity, site)
    assert layout.shape(tensor) == scales
    split = layout.split(torch.arange(torch.tensor(tensor).prod()).view(tensor))
    assert split.shape[0] == torch.tensor(scales).prod()
    assert split.numel() == torch.tensor(tensor).prod()


@given(rows=st.integers(1, 5), blocks=st.integers(1, 4), block=st.integers(1, 8), axis=st.sampled_from([None, 0]))
def test_blocks_are_contiguous_along_the_last_axis(rows, blocks, block, axis):
    tensor = torch.randn(rows, blocks * block)
    layout = ScaleLayout(axis, block)
    largest = layout.split(tensor).abs().amax(1).view(layout.shape(tuple(tensor.shape)))
    assert largest.shape == (rows, blocks, 1)
    assert torch.equal(largest, tensor.view(rows, blocks, block).abs().amax(-1, keepdim=True))


def test_blocks_need_another_axis_for_channels():
    with pytest.raises(ValueError, match="blocks along the last axis"):
        ScaleLayout(-1, 32)
