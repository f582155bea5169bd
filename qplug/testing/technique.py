"""The contract of techniques: what the core relies on, as tests that a plugin inherits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from qplug.core.component import Technique
from qplug.hooks.checks import check_technique
from qplug.testing import hooks
from qplug.testing.component import ComponentContract
from qplug.testing.run import toy_run

MACHINE = ("seconds", "memory")
"""Words in the names of measurements that no two runs share."""


class TechniqueContract(ComponentContract):
    """Subclass it in a plugin's tests::

        class TestMine(TechniqueContract):
            technique = MyTechnique
            configs = [{}, {"strength": 0.5}]

    Every check runs once for each of ``configs``, the parameters of a recipe step without ``use``.
    """

    technique: ClassVar[type[Technique]]

    def component(self) -> type[Technique]:
        """The technique."""
        return self.technique

    # loading

    def test_hooks_are_those_of_the_specification(self) -> None:
        """Names and parameters as in ``qplug.hooks.specs.RunSpecs``."""
        check_technique(self.technique)

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
