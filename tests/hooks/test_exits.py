"""``sys.exit`` in code of others is an error that names its line, wherever qplug calls that code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import field_validator
from recipe_toys import GOOD, registry

from qplug.core.component import Config, Technique
from qplug.core.errors import PluginError
from qplug.core.types import Event, Metric
from qplug.hooks.specs import hookimpl
from qplug.pipeline.run import run
from qplug.recipe import load_recipe
from qplug.testing.run import ToyData, ToyModel, toy_recipe, toy_registry


class Leaving(Technique):
    """Leaves where it is told to."""

    class Config(Config):
        """Its place."""

        use: Literal["toy.leaving"] = "toy.leaving"
        place: str = "observe"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if config.place == "init":
            sys.exit(0)

    @hookimpl
    def qplug_observe(self, event: Event) -> None:
        if self.config.place == "observe":
            raise GeneratorExit


@pytest.mark.parametrize("place", ["init", "observe", "model", "data", "metric"])
def test_a_run_names_who_ends_the_program(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(*_: Any, **__: Any) -> Any:
        sys.exit(0)

    toys = toy_registry(Leaving)
    recipe = toy_recipe(Leaving, registry=toys, place=place)
    if place == "model":
        monkeypatch.setattr(ToyModel, "load", leave)
    elif place == "data":
        monkeypatch.setattr(ToyData, "open", leave)
    elif place == "metric":
        toys.metrics = {"toy.metric": Metric("toy.metric", leave)}
        assert any("toy.metric" in warning for warning in run(recipe, registry=toys).warnings)
        return
    with pytest.raises(PluginError, match=r"(SystemExit|GeneratorExit)"):
        run(recipe, registry=toys)


def test_a_validator_of_a_recipe_ends_no_program(tmp_path: Path) -> None:
    class Settings(Config):
        use: Literal["toy.ranges"]

        @field_validator("use")
        @classmethod
        def _leave(cls, value: str) -> str:
            sys.exit(0)

    class Validating(Technique):
        Config = Settings

        @hookimpl
        def qplug_make_quantizer(self, site: Any) -> None:
            return None

    toys = registry()
    toys.techniques["toy.ranges"] = Validating
    (tmp_path / "recipe.yaml").write_text(GOOD)
    with pytest.raises(PluginError, match=r"ended the program: SystemExit\(0\) in .*test_exits.py:\d+"):
        load_recipe(tmp_path / "recipe.yaml", registry=toys)
