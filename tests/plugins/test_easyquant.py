"""EasyQuant: the printed candidates of the scale, Eq. 4 in float64, and the gain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plugin_toys import activation, choose, make, weight_site
from qplug_plugins.baseline import MinMax
from qplug_plugins.easyquant import Cosine

from qplug import Granularity, QuantSpec

PER_TENSOR, PER_CHANNEL, PER_HEAD = Granularity.PER_TENSOR, Granularity.PER_CHANNEL, Granularity.PER_HEAD


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (8, 30) whose rows have an outlier each, and rows (2, 25, 30) that it reads."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 30, generator=generator)
    weight[:, 0] = 4.0
    return weight, torch.randn(2, 25, 30, generator=generator).exp()


def cosines(weight, x, outputs, bits: int, largest: float) -> tuple[list[float], list[float]]:
    """Each printed candidate S (Eq. 1: x̂ = clip(round(x·S))/S) of a weight, and cos(O, Ô) (Eq. 4), in float64."""
    half = 2 ** (bits - 1)
    start = (half - 1) / largest
    scales = [start * (0.5 + i * 1.5 / 100) for i in range(100)]
    values = []
    for scale in scales:
        moved = x @ (np.clip(np.round(weight * scale), -half, half - 1) / scale).T
        values.append(float((moved * outputs).sum() / np.linalg.norm(moved) / np.linalg.norm(outputs)))
    return scales, values


@pytest.mark.parametrize("bits", [3, 4, 7, 8])
def test_one_scale_is_the_best_of_the_100_printed_candidates_in_float64(bits):
    weight, x = data()
    step = float(choose(make(Cosine), weight_site(weight, x.flatten(0, 1)), QuantSpec(bits)).quantizer.scale)
    wide, rows = weight.double().numpy(), x.flatten(0, 1).double().numpy()
    scales, values = cosines(wide, rows, rows @ wide.T, bits, float(weight.abs().max()))
    place = int(np.abs(np.array(scales) * step - 1).argmin())
    assert scales[place] * step == pytest.approx(1, rel=1e-6)
    assert values[place] == pytest.approx(max(values), abs=2e-7)  # cosines are that close in float32


@pytest.mark.parametrize("bits", [3, 4])
def test_each_channel_takes_the_best_candidate_for_its_output(bits):
    weight, x = data()
    site = weight_site(weight, x.flatten(0, 1))
    steps = choose(make(Cosine), site, QuantSpec(bits, PER_CHANNEL)).quantizer.scale.flatten().tolist()
    rows = x.flatten(0, 1).double().numpy()
    for row, step in zip(weight.double().numpy(), steps, strict=True):
        scales, values = cosines(row[None], rows, rows @ row[None].T, bits, float(np.abs(row).max()))
        place = int(np.abs(np.array(scales) * step - 1).argmin())
        assert scales[place] * step == pytest.approx(1, rel=1e-6)
        assert values[place] == pytest.approx(max(values), abs=2e-7)
    assert len(set(steps)) > 1


def test_the_candidates_are_those_that_are_configured_and_the_first_of_equals_wins():
    weight, _ = data()
    narrow = choose(make(Cosine, alpha=1.0, beta=1.5, candidates=2), weight_site(weight, torch.eye(30)), QuantSpec(3))
    assert float(narrow.quantizer.scale) * 3 / 4.0 == pytest.approx(1 / 1.25)  # 1 and 1.25 were tried
    dead = choose(make(Cosine), activation(torch.zeros(1, 5, 30), weight), QuantSpec(8))
    assert "2.00 of min-max" in dead.reason  # alpha, as every candidate is as good


def test_the_rounds_are_one_unless_configured():
    assert make(Cosine).qplug_alternation_rounds(operands=()) == 1
    assert make(Cosine, rounds=4).qplug_alternation_rounds(operands=()) == 4
    assert not Cosine.gradients


@pytest.mark.parametrize("granularity", [PER_TENSOR, PER_CHANNEL])
@pytest.mark.parametrize("bits", [3, 4])
def test_outputs_point_closer_to_the_float_ones_than_with_min_max(bits, granularity):
    weight, x = data()
    pair = weight_site(weight, x.flatten(0, 1))
    spec = QuantSpec(bits, granularity)
    distances = [
        float(pair[1].cosine_distance(choose(make(t), pair, spec).quantizer(pair[1].sample), granularity).mean())
        for t in (MinMax, Cosine)
    ]
    assert distances[1] < 0.8 * distances[0]  # measured: 0.53 and 0.59 at 3 bits, 0.78 and 0.64 at 4
