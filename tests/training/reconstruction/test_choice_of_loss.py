"""The loss of a block: named in a recipe or defined by a plugin; training reduces it."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Literal

import pytest
import torch
from numeric_toys import Sequence
from paths import RECIPES
from qplug_plugins.brecq import Brecq
from qplug_plugins.brecq.reconstruct import roundings
from qplug_plugins.brecq.rounding import LearnedRounding
from torch import nn

from qplug import (
    Config,
    OutputLoss,
    QuantSpec,
    Rate,
    RecipeError,
    Reconstruction,
    Technique,
    UniformQuantizer,
    hookimpl,
    load_recipe,
)
from qplug.pipeline.run import run
from qplug.testing.run import toy_recipe, toy_registry
from qplug.training.reconstruction.capture import Calls
from qplug.training.reconstruction.loop import learn
from qplug.training.reconstruction.losses import LOSSES, Unit


@pytest.mark.parametrize("name", LOSSES)
def test_the_error_falls_under_each_loss(name):
    """A linear with correlated inputs: learned rounding at 3 bits against rounding to nearest."""
    torch.manual_seed(0)
    model = Sequence(lambda m, x: m.head(torch.tanh(m.block(x))), block=nn.Linear(12, 6), head=nn.Linear(6, 5))
    x = torch.randn(128, 3) @ torch.randn(3, 12) + 0.3 * torch.randn(128, 12)
    weight, bias = model.block.weight.detach(), model.block.bias.detach()
    grid = UniformQuantizer.from_range(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), QuantSpec(3))
    block = copy.deepcopy(model.block)
    block.weight.data = grid.infer(weight)
    loss, learner = LOSSES[name](), LearnedRounding(weight, grid)
    loss.prepare(Unit("block", model, block, x.split(50), -1, "kl", 0))
    layer = Sequence(lambda m, x: x @ m.learner(x).T + bias, learner=learner, held=nn.Linear(1, 1))
    settings = Reconstruction({"w": learner}, {"codes": Rate(0.01)}, iterations=400, weight=0.1)
    y = model.block(x).detach()
    learn(layer, settings, Calls(x, y), x, loss)
    after, before = (
        float(loss(x @ w.T + bias - y, torch.arange(128))) for w in (learner.harden()[1], grid.infer(weight))
    )
    assert after < 0.8 * before


# in a run


def errors(technique, **parameters):
    """Unit → (error before, error after), by the loss of its training."""
    registry = toy_registry(technique)
    recipe = toy_recipe(technique, registry=registry, bits=2, **parameters)
    plan = run(recipe, registry=registry).plan
    found = [re.search(r"error of (\S+) (\S+) → ([^\s,]+)", decision.reason) for decision in plan]
    return {match[1]: (float(match[2]), float(match[3])) for match in found if match}


@pytest.mark.slow
def test_each_name_selects_its_own_loss():
    quick = {"iterations": 20, "batch_size": 4, "rounding_rate": 0.02}
    found = [errors(Brecq, loss=name, **quick) for name in LOSSES]
    assert all(set(ends) == {"patch_embed.proj", "blocks.0", "blocks.1", "head"} for ends in found)
    assert len({ends["patch_embed.proj"][0] for ends in found}) == len(LOSSES)


class Absolute(OutputLoss):
    """A plugin's own loss, which records its unit."""

    def prepare(self, unit):
        super().prepare(unit)
        self.seen = (unit.name, sum(map(len, unit.batches)), unit.loss)

    def forward(self, difference, images):
        return self.average(difference.abs())


class Own(Technique):
    """Reconstructs each operation by ``Absolute``."""

    units: list = []  # noqa: RUF012

    class Config(Config):
        use: Literal["test.own"] = "test.own"

    @hookimpl
    def qplug_reconstruct(self, block):
        loss = Absolute()
        self.units.append(loss)
        rates = {"codes": Rate(0.02)}
        return Reconstruction(roundings(block), rates, iterations=100, batch_size=4, loss=loss, each_operation=True)


@pytest.mark.slow
def test_a_plugin_can_define_a_loss():
    Own.units.clear()
    before, after = map(sum, zip(*errors(Own).values(), strict=True))
    assert after < 0.9 * before
    assert [loss.seen for loss in Own.units][1:] == [
        ("blocks.0.mlp.fc2", 4, "kl"),
        ("blocks.1.mlp.fc2", 4, "kl"),
        ("head", 4, "kl"),
    ]


def test_an_unknown_loss_is_refused_with_its_line(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    recipe = RECIPES / "brecq.yaml"
    text = recipe.read_text(encoding="utf-8").replace("use: brecq.brecq", "use: brecq.brecq\n    loss: fischer")
    path.write_text(text, encoding="utf-8")
    line = text[: text.index("fischer")].count("\n") + 1
    with pytest.raises(RecipeError) as refused:
        load_recipe(path)
    (problem,) = refused.value.problems
    assert f"recipe.yaml:{line}:11" in str(problem)
    assert "'low_rank'" in str(problem)
    assert "'fisher'?" in str(problem)
