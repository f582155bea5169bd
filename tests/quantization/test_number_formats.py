"""A number format is a row: its quantizer, its bits, and what recipes, techniques and plans make of it."""

from typing import Literal

import pytest
import torch
from pydantic import ValidationError

import qplug
from qplug import PluginError, QuantizerChoice, QuantSpec, UniformQuantizer, hookimpl
from qplug.pipeline.run import run
from qplug.quantization.number_formats import NUMBER_FORMATS, NumberFormat, make_quantizer
from qplug.recipe.schema import WeightConfig
from qplug.testing.run import toy_recipe, toy_registry


class Halves(UniformQuantizer):
    """A format of its own: the uniform grid under another kind."""

    kind = "halves"


@pytest.fixture
def halves(monkeypatch):
    """The row of a toy format of 4 bits."""
    row = NumberFormat("halves", "halves", f"{__name__}:Halves", (4, 4))
    monkeypatch.setitem(NUMBER_FORMATS, "halves", row)
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(Halves=Halves))


class ByFormat(qplug.Technique):
    """A quantizer of whatever the recipe asks for."""

    class Config(qplug.Config):
        use: Literal["test.by_format"] = "test.by_format"

    @hookimpl
    def qplug_make_quantizer(self, site, spec, stats):
        return QuantizerChoice(make_quantizer(spec, *stats.range(spec.granularity)))


class Integers(ByFormat):
    """Integers, whatever the recipe asks for."""

    class Config(qplug.Config):
        use: Literal["test.integers"] = "test.integers"

    @hookimpl
    def qplug_make_quantizer(self, site, spec, stats):
        return QuantizerChoice(UniformQuantizer.from_range(*stats.range(spec.granularity), spec))


def test_integers_are_the_uniform_quantizer():
    low, high = torch.tensor(-1.0), torch.tensor(2.0)
    made = make_quantizer(QuantSpec(4), low, high)
    assert type(made) is UniformQuantizer
    assert made.to_dict() == UniformQuantizer.from_range(low, high, QuantSpec(4)).to_dict()


def test_a_row_is_a_format_that_recipes_can_ask_for(halves):
    assert WeightConfig(bits=4, number_format="halves").spec().number_format == "halves"
    made = make_quantizer(QuantSpec(4, number_format="halves"), torch.tensor(-1.0), torch.tensor(2.0))
    assert type(made) is Halves


def test_bits_and_names_that_no_format_has_are_refused(halves):
    with pytest.raises(ValidationError, match="number_format halves has 4 to 4 bits, received 8"):
        WeightConfig(bits=8, number_format="halves")
    with pytest.raises(ValidationError, match="there is no number format 'fp9'; there are int, halves"):
        WeightConfig(bits=8, number_format="fp9")


def recipe(technique, registry, **values):
    made = toy_recipe(technique, registry=registry, bits=4).dump()
    made["quantize"]["weights"] |= values
    return type(toy_recipe(technique, registry=registry)).model_validate(made)


def test_a_technique_that_makes_another_format_is_named(halves):
    registry = toy_registry(ByFormat, Integers)
    with pytest.raises(PluginError, match=r"expected numbers of format halves, received int") as caught:
        run(recipe(Integers, registry, number_format="halves"), registry=registry)
    assert "test.integers" in caught.value.where
    plan = run(recipe(ByFormat, registry, number_format="halves"), registry=registry).plan
    kinds = {decision.quantizer.kind for decision in plan if decision.site.kind.is_weight}
    assert kinds == {"halves"}
