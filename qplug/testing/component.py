"""What every contract of a class with a ``Config`` checks: techniques, model sources and data sources."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

from pydantic import ValidationError

from qplug.core.component import Component, Config

HEAVY = ("torch", "timm", "brevitas", "modelopt", "sklearn", "numpy")


class ComponentContract:
    """The base of contracts; every check runs once for each of ``configs``.

    A test that needs files defines a fixture ``parameters`` in its class, in the place of ``configs``.
    """

    configs: ClassVar[Sequence[Mapping[str, Any]]] = ({},)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """One test for each configuration."""
        if "parameters" in metafunc.fixturenames and not hasattr(type(self), "parameters"):
            metafunc.parametrize("parameters", self.configs, ids=lambda parameters: json.dumps(parameters))

    def component(self) -> type[Component]:
        """The class under test."""
        raise NotImplementedError

    def make(self, parameters: Mapping[str, Any]) -> Any:
        """An instance as the pipeline makes it."""
        cls = self.component()
        return cls(cls.Config.model_validate({cls.tag: cls.name(), **parameters}))

    # configuration

    def test_configuration_is_strict(self, parameters: Mapping[str, Any]) -> None:
        """Frozen, without room for unknown keys, and named by its tag."""
        component = self.component()
        cls, name, tag = component.Config, component.name(), component.tag
        assert issubclass(cls, Config), f"{name}: Config must derive from qplug.Config"
        assert cls.model_config.get("frozen"), f"{name}: Config must be frozen"
        config = self.make(parameters).config
        assert getattr(config, tag) == name
        for wrong in ({tag: f"{name}.other"}, {"unknown_key_of_the_contract": 1}):
            try:
                cls.model_validate({tag: name, **parameters, **wrong})
            except ValidationError:
                continue
            raise AssertionError(f"{name}: Config accepts {wrong}")

    def test_configuration_explains_itself(self) -> None:
        """A docstring for the class and a description, with the unit, for every parameter."""
        component = self.component()
        assert (component.__doc__ or "").strip(), f"{component.name()} has no docstring"
        for key, field in component.Config.model_fields.items():
            nested = isinstance(field.annotation, type) and issubclass(field.annotation, Config)
            assert key == component.tag or field.description or nested, (
                f"{component.name()}: '{key}' needs Field(description=…), with its unit"
            )

    def test_configuration_survives_a_round_trip(self, parameters: Mapping[str, Any]) -> None:
        """What is written to a run folder gives the same configuration again; so the defaults are valid too."""
        config = self.make(parameters).config
        again = type(config).model_validate_json(json.dumps(config.model_dump(mode="json"), allow_nan=False))
        assert again == config

    def test_importing_it_is_light(self) -> None:
        """``qplug validate`` imports every plugin, and must not wait for torch."""
        module = self.component().__module__
        if module == type(self).__module__:
            return  # a class inside its own test is no plugin
        heavy = _heavy_imports(module)
        assert not heavy, f"importing {module} imports {', '.join(heavy)}; import them inside the methods"


@cache
def _heavy_imports(module: str) -> tuple[str, ...]:
    """Which of ``HEAVY`` a fresh interpreter has imported after importing ``module``."""
    code = f"import sys; sys.path[:] = {sys.path!r}; import {module}; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"importing {module} alone fails:\n{done.stderr}"
    return tuple(done.stdout.split())
