"""The contract of techniques: what the core relies on, as tests that a plugin inherits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import torch
from pydantic import ValidationError

from qplug.core.component import Config, Technique
from qplug.hooks.checks import check_technique
from qplug.testing import hooks
from qplug.testing.run import toy_run

HEAVY = ("torch", "timm", "brevitas", "modelopt", "sklearn", "numpy")
MACHINE = ("seconds", "memory")
"""Words in the names of measurements that no two runs share."""


class TechniqueContract:
    """Subclass it in a plugin's tests::

        class TestMine(TechniqueContract):
            technique = MyTechnique
            configs = [{}, {"strength": 0.5}]

    Every check runs once for each of ``configs``, the parameters of a recipe step without ``use``.
    """

    technique: ClassVar[type[Technique]]
    configs: ClassVar[Sequence[Mapping[str, Any]]] = ({},)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """One test for each configuration."""
        if "parameters" in metafunc.fixturenames:
            metafunc.parametrize("parameters", self.configs, ids=lambda parameters: json.dumps(parameters))

    def make(self, parameters: Mapping[str, Any]) -> Technique:
        """An instance as the pipeline makes it."""
        config = self.technique.Config.model_validate({"use": self.technique.name(), **parameters})
        return self.technique(config)

    # configuration

    def test_configuration_is_strict(self, parameters: Mapping[str, Any]) -> None:
        """Frozen, without room for unknown keys, and named by its tag."""
        cls, name = self.technique.Config, self.technique.name()
        assert issubclass(cls, Config), f"{name}: Config must derive from qplug.Config"
        assert cls.model_config.get("frozen"), f"{name}: Config must be frozen"
        config = self.make(parameters).config
        assert config.use == name
        for wrong in ({"use": f"{name}.other"}, {"unknown_key_of_the_contract": 1}):
            try:
                cls.model_validate({"use": name, **parameters, **wrong})
            except ValidationError:
                continue
            raise AssertionError(f"{name}: Config accepts {wrong}")

    def test_configuration_explains_itself(self) -> None:
        """A docstring for the technique and a description, with the unit, for every parameter."""
        name = self.technique.name()
        assert (self.technique.__doc__ or "").strip(), f"{name} has no docstring"
        for key, field in self.technique.Config.model_fields.items():
            assert key == "use" or field.description, f"{name}: '{key}' needs Field(description=…), with its unit"

    def test_configuration_survives_a_round_trip(self, parameters: Mapping[str, Any]) -> None:
        """What is written to a run folder gives the same configuration again; so the defaults are valid too."""
        config = self.make(parameters).config
        again = type(config).model_validate_json(json.dumps(config.model_dump(mode="json"), allow_nan=False))
        assert again == config

    # loading

    def test_hooks_are_those_of_the_specification(self) -> None:
        """Names and parameters as in ``qplug.hooks.specs.RunSpecs``."""
        check_technique(self.technique)

    def test_importing_it_is_light(self) -> None:
        """``qplug validate`` imports every technique, and must not wait for torch."""
        module = self.technique.__module__
        if module == type(self).__module__:
            return  # a technique inside its own test is no plugin
        heavy = _heavy_imports(module)
        assert not heavy, f"importing {module} imports {', '.join(heavy)}; import them inside the methods"

    # behaviour

    def test_same_inputs_same_results(self, parameters: Mapping[str, Any]) -> None:
        """Every hook, called twice on the same inputs by two instances, says the same and changes no input."""
        first = hooks.answers(self.make(parameters))
        second = hooks.answers(self.make(parameters))
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert one == other, f"two calls on the same inputs answered\n{str(one)[:500]}\nand\n{str(other)[:500]}"

    def test_results_are_valid(self, parameters: Mapping[str, Any]) -> None:
        """Quantizers keep their contract, smoothings and rewrites the function that they promise to keep."""
        hooks.check_results(self.make(parameters))

    def test_it_runs(self, parameters: Mapping[str, Any]) -> None:
        """End to end on a toy: twice the same result, and the float model as it was."""
        loaded: list[torch.nn.Module] = []
        runs = [toy_run(self.technique, loaded=loaded, **parameters) for _ in range(2)]
        for key, value in runs[0].metrics.items():
            again = runs[1].metrics[key]
            if not any(word in key for word in MACHINE):
                assert repr(value) == repr(again), f"two runs of the same recipe measured {key} as {value} and {again}"
        assert runs[0].plan.to_dict() == runs[1].plan.to_dict(), "two runs of the same recipe decide differently"
        for model in loaded:
            hooks.check_untouched(model)


@cache
def _heavy_imports(module: str) -> tuple[str, ...]:
    """Which of ``HEAVY`` a fresh interpreter has imported after importing ``module``."""
    code = f"import sys; sys.path[:] = {sys.path!r}; import {module}; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"importing {module} alone fails:\n{done.stderr}"
    return tuple(done.stdout.split())
