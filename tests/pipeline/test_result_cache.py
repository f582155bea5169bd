"""A run with a cache is the run without one, and the second computes nothing twice."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch

from qplug import Config, ModelSource, QuantizerChoice, Rewrite, Technique, UniformQuantizer, hookimpl, run
from qplug.core.storage.cache import Cache
from qplug.models.float_model import FloatModel, Preprocessing
from qplug.pipeline.result_cache import WORTH_CACHING, stats_digest
from qplug.quantization.calibration.calibrator import Calibration
from qplug.recipe import recipe_type
from qplug.testing import toy_calibration, toy_recipe, toy_registry, toy_vit
from qplug.testing.toys import SIZE


class Slow(Technique):
    """Ranges that take long enough to be worth a file."""

    class Config(Config):
        """Its value."""

        use: Literal["toy.slow"] = "toy.slow"
        factor: float = 1.0

    asked: ClassVar[list[str]] = []

    @hookimpl
    def qplug_make_quantizer(self, site, spec, stats):
        import time

        if site.role != "weight":
            return None
        time.sleep(1.5 * WORTH_CACHING)
        self.asked.append(site.name)
        return QuantizerChoice(
            UniformQuantizer.from_range(*stats.range(spec.granularity), spec).scaled(self.config.factor), "slow"
        )


@pytest.fixture
def once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs with one cache, and how often the model was calibrated."""
    calls: list[int] = []
    collect = Calibration.collect

    def counted(self, *arguments, **more):
        calls.append(1)
        return collect(self, *arguments, **more)

    monkeypatch.setattr(Calibration, "collect", counted)
    registry = toy_registry(Slow)

    def go(cache: bool = True, bits: int = 4, **parameters):
        Slow.asked = []
        recipe = toy_recipe(Slow, registry=registry, bits=bits, **parameters)
        return run(recipe, registry=registry, cache=Cache(tmp_path / "cache") if cache else None)

    return go, calls


class Gain(torch.nn.Module):
    """Its gain is in neither its weights nor its ``repr``."""

    def __init__(self, body: torch.nn.Module, gain: float) -> None:
        super().__init__()
        self.body, self.gain = body, gain

    def forward(self, x):
        return self.body(self.gain * x)


class Louder(ModelSource):
    """The toy with a gain before it."""

    class Config(Config):
        """Its value."""

        source: Literal["louder"] = "louder"
        gain: float = 1.0

    def load(self) -> FloatModel:
        preprocessing = Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3, "nearest", 1.0)
        return FloatModel.of(Gain(toy_vit(), self.config.gain), "louder", preprocessing)


class Activations(Technique):
    """Puts a gain before every activation."""

    class Config(Config):
        """Its value."""

        use: Literal["toy.activations"] = "toy.activations"
        gain: float = 1.0

    @hookimpl
    def qplug_rewrite_activation(self, name, module):
        return Rewrite(Gain(module, self.config.gain), preserves=False)


class Remembers(Slow):
    """Answers by what it saw before."""

    class Config(Config):
        """Its value."""

        use: Literal["toy.remembers"] = "toy.remembers"
        factor: float = 1.0

    def __init__(self, config) -> None:
        super().__init__(config)
        self.seen: list[str] = []


class Derived(UniformQuantizer):
    """Has the kind of its base, as which a file would give it back."""

    def infer(self, x):
        return super().infer(x) * 0.5


class Derives(Slow):
    """Answers with a quantizer that does not say what it is."""

    class Config(Config):
        """Its value."""

        use: Literal["toy.derives"] = "toy.derives"
        factor: float = 1.0

    @hookimpl
    def qplug_make_quantizer(self, site, spec, stats):
        answer = super().qplug_make_quantizer(site, spec, stats)
        if answer is None:
            return None
        base = answer.quantizer
        return QuantizerChoice(Derived(base.scale, None, base.bits, base.signed), answer.reason)


def alike(one, other) -> bool:
    words = ("seconds", "memory")
    mine, theirs = ({k: v for k, v in r.metrics.items() if not any(w in k for w in words)} for r in (one, other))
    return mine == theirs and one.plan.to_dict() == other.plan.to_dict()


def test_the_second_run_computes_nothing_twice_and_finds_the_same(once) -> None:
    go, calls = once
    without = go(cache=False)
    first = go()
    assert (len(calls), len(Slow.asked)) == (2, len([d for d in first.plan if d.site.role == "weight"]))
    second = go()
    assert (len(calls), Slow.asked) == (2, [])
    assert alike(first, without)
    assert alike(second, without)
    assert first.metrics["cache.seconds_saved"] == 0
    saved = second.metrics["cache.seconds_saved"]
    assert saved > WORTH_CACHING * 8
    parts = {k.rpartition(".")[2]: v for k, v in second.metrics.items() if k.startswith("cache.seconds_saved.")}
    assert parts["ranges"] > WORTH_CACHING * 8  # what it once took
    assert sum(parts.values()) == pytest.approx(saved)
    stages = [v for k, v in second.metrics.items() if k.startswith("seconds.") and k != "seconds.total"]
    assert sum(stages) <= second.metrics["seconds.total"]  # wall time, whatever the cache saved


@pytest.mark.slow
def test_only_what_changed_is_computed_again(once) -> None:
    go, calls = once
    go()
    go(bits=6)
    assert len(calls) == 1
    assert Slow.asked
    go(factor=0.9)
    assert len(calls) == 1
    assert Slow.asked


@pytest.mark.slow
def test_technique_that_is_in_no_file_is_asked_every_time(once, monkeypatch) -> None:
    go, calls = once
    monkeypatch.setattr(Slow, "__module__", "__console__")
    go()
    go()
    assert len(calls) == 1
    assert Slow.asked


def swapped(registry, **values):
    """The toy recipe with other values in the place of its own."""
    return recipe_type(registry).model_validate(toy_recipe(Slow, registry=registry).dump() | values)


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [
        lambda gain: {"model": {"source": "louder", "gain": gain}},
        lambda gain: {"techniques": [{"use": "toy.activations", "gain": gain}, {"use": "toy.minmax"}]},
    ],
    ids=["model", "rewrite"],
)
def test_what_neither_weights_nor_modules_show_is_part_of_the_model(tmp_path: Path, part) -> None:
    registry = toy_registry(Slow, Activations)
    registry.models = registry.models | {"louder": Louder}
    cache = Cache(tmp_path / "cache")
    quiet = run(swapped(registry, **part(1.0)), registry=registry, cache=cache)
    loud = run(swapped(registry, **part(3.0)), registry=registry, cache=cache)
    assert alike(loud, run(swapped(registry, **part(3.0)), registry=registry))
    assert not alike(loud, quiet)
    again = run(swapped(registry, **part(3.0)), registry=registry, cache=cache)
    assert again.metrics["cache.seconds_saved"] > 0


def test_a_model_whose_code_is_in_no_file_is_computed_every_time(tmp_path: Path, monkeypatch) -> None:
    registry = toy_registry(Slow)
    registry.models = registry.models | {"louder": Louder}
    monkeypatch.setattr(Gain, "__module__", "__console__")
    cache = Cache(tmp_path / "cache")
    run(swapped(registry, model={"source": "louder"}), registry=registry, cache=cache)
    assert cache.entries() == []


class Notes(Slow):
    """Says something of every answer."""

    class Config(Config):
        """Its value."""

        use: Literal["toy.notes"] = "toy.notes"
        factor: float = 1.0

    @hookimpl
    def qplug_make_quantizer(self, site, spec, stats):
        self.notes.append(f"{site.name} was asked for")
        return super().qplug_make_quantizer(site, spec, stats)


@pytest.mark.slow
def test_what_a_technique_says_of_an_answer_is_said_again(tmp_path: Path) -> None:
    registry, cache = toy_registry(Notes), Cache(tmp_path / "cache")
    recipe = toy_recipe(Notes, registry=registry)
    first, again = (run(recipe, registry=registry, cache=cache).warnings for _ in range(2))
    assert "head.weight was asked for" in "".join(first)
    assert again == first


@pytest.mark.slow
@pytest.mark.parametrize(("technique", "kept"), [(Slow, True), (Remembers, False), (Derives, False)])
def test_an_answer_that_no_file_can_give_back_is_asked_for_again(tmp_path: Path, technique, kept, monkeypatch) -> None:
    """A technique that remembers answers by more than a key holds, and a quantizer may hide behind another's kind."""
    registry, cache = toy_registry(technique), Cache(tmp_path / "cache")
    results, reasons, store = [], [], cache.store
    monkeypatch.setattr(cache, "store", lambda *given: (reasons.append(given[-1].get("reason")), store(*given)))
    for _ in range(2):
        Slow.asked = []
        results.append(run(toy_recipe(technique, registry=registry), registry=registry, cache=cache))
    assert bool(Slow.asked) is not kept
    assert alike(*results)
    # not that no quantizer is kept: on a busy machine those of the technique behind it are worth a file too
    assert ("slow" in reasons) is kept
    assert {"statistics", "outputs"} <= {held.kind for held in cache.entries()}


def test_statistics_are_the_same_after_somebody_looked_at_them() -> None:
    stats = next(stats for site, stats in toy_calibration() if site.name == "blocks.0.mlp.fc2.input")
    before = stats_digest(stats)
    assert stats.image_min_mean.isfinite()
    assert stats.product.output.isfinite().all()
    assert stats_digest(stats) == before


@pytest.mark.slow
def test_a_damaged_cache_is_computed_again(once, tmp_path: Path) -> None:
    go, calls = once
    first = go()
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    assert alike(go(), first)
    assert len(calls) == 2


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    registry = toy_registry(Slow)
    result = run(toy_recipe(Slow, registry=registry), registry=registry, cache=Cache(tmp_path / "file"))
    assert any("cannot be written to" in warning for warning in result.warnings)
    assert torch.isfinite(torch.tensor(result.metrics["quantized.logit_sqnr_db"]))
