"""Techniques that calibrate by themselves see the model once, as it is when it is their turn, and every image."""

from typing import Literal

import pytest
import torch
from numeric_toys import calibrated, quantize, steps

from qplug import Config, PluginError, QuantizerChoice, Smoothing, Technique, UniformQuantizer, hookimpl, run
from qplug.analysis.sensitivity.measure import SensitivityRequest, measure
from qplug.models.equivalence import EquivalenceCheck
from qplug.pipeline.plugin_calibration import PluginCalibration
from qplug.pipeline.specs import resolve
from qplug.pipeline.stages.smooth import smooth_groups
from qplug.testing import toy_images, toy_registry
from qplug.testing.run import toy_recipe

NORM = "blocks.0.norm1"
SEEN: dict[str, list] = {}


class Seeing(Technique):
    """Remembers what it was shown, and spoils its copy."""

    @hookimpl
    def qplug_calibrate(self, model, images, specs):
        weight = model.get_submodule(NORM).weight
        SEEN.setdefault(self.name(), []).append((weight.clone(), len(images), [len(x) for x in images], specs))
        with torch.no_grad():
            weight.zero_()


class Halving(Seeing):
    class Config(Config):
        use: Literal["toy.halving"] = "toy.halving"

    @hookimpl
    def qplug_smooth(self, group):
        scale = torch.full((group.weights[0].shape[1],), 2.0)
        return Smoothing(torch.zeros_like(scale), scale)


class Watching(Seeing):
    class Config(Config):
        use: Literal["toy.watching"] = "toy.watching"

    @hookimpl
    def qplug_make_quantizer(self, site, spec, stats):
        return QuantizerChoice(UniformQuantizer.from_range(stats.min, stats.max, spec), "min-max")


class Raising(Technique):
    class Config(Config):
        use: Literal["toy.raising"] = "toy.raising"

    @hookimpl
    def qplug_calibrate(self, model):
        raise ZeroDivisionError("of the toy")


@pytest.fixture
def shown():
    SEEN.clear()
    model, found, statistics = calibrated()
    asked = resolve(quantize(), found.sites)
    before = model.get_submodule(NORM).weight.clone()

    def see(*techniques):
        chain = steps(*techniques)
        calibrators = PluginCalibration(chain, model, [toy_images(2), toy_images(1)], asked)
        smooth_groups(model, chain, statistics, found, asked, EquivalenceCheck(model, toy_images(2)), calibrators.run)
        calibrators.run_rest()
        return before, model.get_submodule(NORM).weight

    return see


def test_before_its_own_smoothing_and_else_after_all_of_it(shown):
    first, second = (type(name, (Halving,), {"Config": _config(f"toy.{name}")}) for name in ("one", "two"))
    before, after = shown(Watching, first, second)
    assert torch.equal(after, before / 4)  # nobody's copy is the model
    weights = {name: [call[0] for call in calls] for name, calls in SEEN.items()}
    assert {name: len(calls) for name, calls in weights.items()} == {"toy.watching": 1, "toy.one": 1, "toy.two": 1}
    assert torch.equal(weights["toy.one"][0], before)
    assert torch.equal(weights["toy.two"][0], before / 2)
    assert torch.equal(weights["toy.watching"][0], before / 4)


def _config(name):
    return type("Config", (Config,), {"__annotations__": {"use": Literal[name]}, "use": name, "__module__": __name__})


def test_every_batch_and_what_the_recipe_asks(shown):
    shown(Watching)
    _, count, sizes, specs = SEEN["toy.watching"][0]
    assert (count, sizes) == (2, [2, 1])
    assert specs["blocks.0.attn.qkv.weight"].bits == 4


def test_a_technique_that_raises_is_named(shown):
    with pytest.raises(PluginError, match=r"toy\.raising of qplug-toy 1\.2\.3, qplug_calibrate.*ZeroDivisionError"):
        shown(Raising)


def test_a_run_shows_the_sites_of_its_scope():
    SEEN.clear()
    registry = toy_registry(Watching)
    run(toy_recipe(Watching, registry=registry), registry=registry)
    ((_, count, sizes, specs),) = SEEN["toy.watching"]
    assert (count, sizes) == (1, [4])
    assert "blocks.0.attn.matmul_qk.lhs" in specs
    assert not [name for name in specs if "norm" in name or "softmax" in name]


def test_sensitivity_shows_it_too():
    SEEN.clear()
    registry = toy_registry(Watching)
    shown, judged = (
        registry.datasets["toy"](registry.datasets["toy"].Config(split=split, images=3)) for split in ("train", "test")
    )
    model = registry.models["toy"](registry.models["toy"].Config())
    found = measure(
        model, shown, judged, [Watching(Watching.Config())], SensitivityRequest(bits=(4,)), registry=registry
    )
    assert [len(calls) for calls in SEEN.values()] == [1]
    assert found.ranges == ["toy.watching"]
