"""A layer with a known optimal rounding, and reconstruction inside a run of the toy."""

from __future__ import annotations

import re

import torch
from qplug_plugins.brecq import AdaRound, Brecq
from torch import nn

from qplug import QuantSpec, Rate, UniformQuantizer
from qplug.pipeline.run import run
from qplug.testing.run import toy_recipe, toy_registry

RATES = {"codes": Rate(0.01), "scales": Rate(1e-3, cosine=True)}


class Layer(nn.Module):
    """A linear with a learner of its weight."""

    def __init__(self, learner):
        super().__init__()
        self.learner = learner
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x @ self.learner(self.weight).T


def problem(outputs=3, inputs=6, seed=0):
    """A weight, strongly correlated inputs and a grid: rounding to nearest is not optimal."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=draw)
    x = torch.randn(256, 2, generator=draw) @ torch.randn(2, inputs, generator=draw) + 0.3 * torch.randn(
        256, inputs, generator=draw
    )
    grid = UniformQuantizer.from_range(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), QuantSpec(3))
    return weight, x, grid


QUICK = {"iterations": 30, "batch_size": 4, "rounding_rate": 0.02}


def reconstructed(technique=Brecq, bits=2, observers=(), cache=None, out=None, **more):
    registry = toy_registry(technique)
    parameters = {**QUICK, **more} if issubclass(technique, (Brecq, AdaRound)) else more
    recipe = toy_recipe(technique, registry=registry, bits=bits, **parameters)
    return run(recipe, registry=registry, observers=observers, cache=cache, out=out)


def errors(plan):
    """Block → (error before, error after), from the reasons in the plan."""
    found = {}
    for decision in plan:
        if "error of" in decision.reason:
            name, before, after = re.search(r"error of (\S+) (\S+) → ([^\s,]+)", decision.reason).groups()
            found[name] = (float(before), float(after))
    return found
