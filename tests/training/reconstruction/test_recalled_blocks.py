"""Cached blocks: only blocks of the same backend, and only with serializable quantizers."""

from typing import Literal

import pytest
from other_backend import with_other
from qplug_plugins.brecq import Brecq
from reconstruction_toys import QUICK

from qplug import Config, QuantizerChoice, Technique, UniformQuantizer, hookimpl
from qplug.core.storage.cache import Cache
from qplug.pipeline.run import run
from qplug.testing.run import toy_recipe, toy_registry


@pytest.mark.slow
def test_cached_blocks_of_another_backend_are_not_used(tmp_path):
    registry = with_other(toy_registry(Brecq))
    recipe = toy_recipe(Brecq, registry=registry, bits=3, **QUICK)
    there = recipe.model_copy(update={"backend": "other"})
    alone, cache = run(there, registry=registry).plan.to_dict(), Cache(tmp_path)
    assert run(recipe, registry=registry, cache=cache).plan.to_dict() != alone
    assert run(there, registry=registry, cache=cache).plan.to_dict() == alone


class Unknown(UniformQuantizer):
    """A quantizer of a kind that no plugin offers, so that it cannot be restored."""

    kind = "unknown"


class Ranges(Technique):
    class Config(Config):
        use: Literal["test.ranges"] = "test.ranges"

    @hookimpl(tryfirst=True)
    def qplug_make_quantizer(self, site, spec, stats):
        if site.kind.is_weight:
            return None
        found = UniformQuantizer.from_range(*stats.range(spec.granularity), spec)
        return QuantizerChoice(Unknown(found.scale, None, found.bits, found.signed), "unknown")


@pytest.mark.slow
def test_a_block_with_a_quantizer_without_from_dict_is_not_cached(tmp_path):
    registry = toy_registry(Brecq, Ranges)
    recipe = toy_recipe(Brecq, registry=registry, bits=3, steps=False, **QUICK)
    steps = [*recipe.techniques, Ranges.Config()]
    recipe, cache = recipe.model_copy(update={"techniques": steps}), Cache(tmp_path)
    first = run(recipe, registry=registry, cache=cache).plan.to_dict()
    assert run(recipe, registry=registry, cache=cache).plan.to_dict() == first
    assert not list((tmp_path / "reconstruction").rglob("*.safetensors"))
