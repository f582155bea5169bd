"""Depth and ranges: every number equals NumPy's in float64 for any batches, and the sample is fair."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mlp_toys import convmixer, embedded, resmlp
from numeric_toys import Constant, Sequence, sited
from torch import nn

from qplug import InputError
from qplug.analysis.ranges.activations import activation_ranges
from qplug.analysis.ranges.depth import find_depth
from qplug.models.blocks import BLOCKS


def placed(model, image):
    model, found = sited(model, image)
    operations = list(dict.fromkeys(site.module for site in found.sites))
    return model, found.sites, find_depth(model, operations, image, BLOCKS)


def images(count=5):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def test_a_position_is_the_share_of_the_depth_behind_it():
    _, _, depth = placed(resmlp(), images(1))
    assert depth.blocks == ("blocks.0", "blocks.1")
    assert depth.positions == {
        "stem.proj": 0.0,
        "blocks.0.linear_tokens": pytest.approx(1 / 6),
        "blocks.0.mlp_channels.fc1": pytest.approx(2 / 6),
        "blocks.0.mlp_channels.fc2": 0.5,
        "blocks.0": 0.5,
        "blocks.1.linear_tokens": pytest.approx(4 / 6),
        "blocks.1.mlp_channels.fc1": pytest.approx(5 / 6),
        "blocks.1.mlp_channels.fc2": 1.0,
        "blocks.1": 1.0,
        "head": 1.0,
    }
    assert depth.owners["blocks.1.linear_tokens"] == "blocks.1"
    assert depth.owners["head"] == "head"


def test_blocks_without_a_class_are_found_by_their_numbers():
    _, _, depth = placed(convmixer(), images(1))
    assert depth.blocks == ("blocks.0", "blocks.1")  # and not stem.0, which is an operation
    assert (depth.positions["stem.0"], depth.positions["blocks.0.1"]) == (0.0, 0.5)


def test_without_blocks_operations_share_the_depth():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(392, 4)).eval()
    _, _, depth = placed(model, images(1))
    assert depth.blocks == ()
    assert depth.positions == {"0": 0.5, "2": 1.0}


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_every_number_is_numpys(batch):
    model, sites, depth = placed(resmlp(), images(1))
    seen, told = {}, []
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, args, out, n=name: seen.update({n: (args[0], out)}))
        for name in ("blocks.1.linear_tokens", "blocks.0")
    ]
    model(images())
    for handle in handles:
        handle.remove()
    found = activation_ranges(model, sites, depth, images().split(batch), 5, advance=told.append)
    assert told[-1] == 5
    names = {one.name: one for one in found}
    assert [one.name for one in found][-2:] == ["blocks.0", "blocks.1"]
    for name, x in (
        ("blocks.1.linear_tokens.input", seen["blocks.1.linear_tokens"][0]),
        ("blocks.0", seen["blocks.0"][1]),
    ):
        one, values = names[name], x.double().numpy().ravel()
        expected = (
            *(values.min(), values.max(), *np.percentile(values, (1, 99))),
            *(np.abs(values).max(), np.percentile(np.abs(values), 99)),
        )
        given = (one.low, one.high, one.percentile_low, one.percentile_high, one.largest, one.percentile)
        assert given == pytest.approx(expected, rel=1e-5)
    assert names["blocks.0"].kind == "block_output"
    assert names["blocks.0"].position == 0.5


def test_a_sample_is_fair_and_depends_on_the_image_alone(monkeypatch):
    model, sites, depth = placed(resmlp(), images(1))
    exact = activation_ranges(model, sites, depth, images().split(5), 5)
    monkeypatch.setattr("qplug.analysis.ranges.activations.SAMPLED", 400)
    one, other = (activation_ranges(model, sites, depth, images().split(size), 5) for size in (5, 2))
    for all_, some, again in zip(exact, one, other, strict=True):
        assert some.name == again.name
        assert (some.low, some.high) == pytest.approx((all_.low, all_.high), rel=1e-5)  # of every value
        assert some.percentile == pytest.approx(again.percentile, rel=1e-5)
        assert 0.6 * all_.percentile < some.percentile <= all_.largest  # 400 values: 4 of them are above it


def test_padding_does_not_count():
    model = convmixer(kernel_size=5, patch_size=8)  # 2×2 positions: 16 of 25 values of a window
    model, sites, depth = placed(model, images(1))
    found = {one.name: one for one in activation_ranges(model, sites, depth, images().split(5), 5)}
    seen = []
    model.get_submodule("blocks.0.0.fn.0").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(images())
    expected = np.percentile(seen[0].abs().numpy(), 99)
    assert found["blocks.0.0.fn.0.input"].percentile == pytest.approx(expected, rel=1e-5)


def test_the_first_site_with_a_non_finite_activation_is_named():
    model, sites, depth = placed(resmlp(), images(1))
    with pytest.raises(InputError, match=r"finite activations .* received NaN or infinity") as caught:
        activation_ranges(model, sites, depth, [torch.full((1, 3, 16, 16), float("nan"))], 1)
    assert caught.value.where == "stem.proj.input"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_outlier_channel_is_seen_in_the_maximum_and_not_in_the_percentile():
    from mlp_toys import planted

    shown = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ranges = []
    for model in (embedded("resmlp_digits"), planted()):
        model, sites, depth = placed(model, shown[:1])
        found = activation_ranges(model, sites, depth, shown.split(8), 16)
        ranges.append(next(one for one in found if one.name == "blocks.3.mlp_channels.fc1.input"))
    plain, outlier = ranges
    assert outlier.largest > 20 * plain.largest


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_a_table_without_images_has_its_own_range(batch):
    model = Sequence(
        lambda m, x: m.head(x.mean((2, 3)) + m.bias(m.table.values).mean(0)),
        bias=nn.Linear(2, 3),
        head=nn.Linear(3, 4),
        table=Constant(3, 2),
    )
    model, sites, depth = placed(model, images(1))
    found = {r.name: r for r in activation_ranges(model, sites, depth, images().split(batch), 5)}
    table = model.table.values.numpy()
    assert (found["bias.input"].low, found["bias.input"].high) == (table.min(), table.max())
    assert found["bias.input"].percentile_low == pytest.approx(np.percentile(np.repeat(table, 5), 1))
