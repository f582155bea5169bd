"""A run states the numbers of its plan where bits and granularity do not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from qplug import Plan, Quantizer, QuantSpec, Site, SiteKind, UniformQuantizer
from qplug.hooks.registry import Plugin, Registry, installed
from qplug.pipeline.number_words import number_words
from qplug.quantization.plan import Decision


class Floats(Quantizer):
    """A number format of a plugin, with or without scales."""

    kind = "mine.floats"

    def __init__(self, scales: Tensor | None = None) -> None:
        super().__init__()
        self.bits = 8
        if scales is not None:
            self.register_buffer("scales", scales)


WEIGHT = Site("a.weight", SiteKind.LINEAR_WEIGHT, "a", "weight", (4, 64), 1, channel_axis=0)
INPUT = Site("a.input", SiteKind.LINEAR_INPUT, "a", "input", (5, 64), 1)


@pytest.fixture
def registry() -> Registry:
    found = copy.copy(installed())
    found.owners = {**found.owners, "quantizer:mine.floats": Plugin("mine", "qplug-mine", "1", "mine")}
    return found


def said(registry: Registry, site: Site, quantizer: Quantizer) -> dict[str, str]:
    return number_words(Plan({site.name: Decision(site, QuantSpec(8), quantizer, "t", "", "recipe")}), registry)


def test_formats_blocks_and_dynamic_ranges_are_named(registry: Registry) -> None:
    assert said(registry, WEIGHT, Floats(torch.ones(4))) == {"weights": "mine.floats"}
    assert said(registry, WEIGHT, Floats(torch.ones(4, 2))) == {"weights": "mine.floats, scales in blocks"}
    assert said(registry, INPUT, Floats()) == {"activations": "dynamic ranges, mine.floats"}
    assert said(registry, INPUT, Floats(torch.ones(()))) == {"activations": "mine.floats"}


def test_integers_with_the_scales_that_a_recipe_asks_for_need_no_words(registry: Registry) -> None:
    for scale in (torch.ones(()), torch.ones(4, 1)):
        assert said(registry, WEIGHT, UniformQuantizer(scale, None, 8, True)) == {}
    blocks = UniformQuantizer(torch.ones(4, 64), None, 8, True)
    assert said(registry, WEIGHT, blocks) == {"weights": "scales in blocks"}
