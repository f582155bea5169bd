"""Techniques that calibrate by themselves: each sees the model and the images once, when it is its turn."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from qplug.core.types import QuantSpec

if TYPE_CHECKING:
    from qplug.core.component import Technique
    from qplug.hooks.caller import TechniqueCaller

HOOK = "qplug_calibrate"


class PluginCalibration:
    """Calls ``qplug_calibrate`` of each technique that implements it.

    Args:
        steps: the techniques.
        model: the float model, which is watched by reference; each technique gets a copy.
        images: the calibration batches, on the model's device, for any number of passes.
        specs: what the recipe asks, by site name.
    """

    def __init__(
        self, steps: TechniqueCaller, model: nn.Module, images: Iterable[Tensor], specs: Mapping[str, QuantSpec]
    ) -> None:
        self._steps, self._model, self._images, self._specs = steps, model, images, specs
        self._waiting = {id(technique): caller for technique, caller in steps.each_technique(HOOK)}

    def show(self, technique: Technique) -> None:
        """Show the model as it is now to ``technique``, if it wants that and has not seen it yet."""
        caller = self._waiting.pop(id(technique), None)
        if caller is None:
            return
        model = copy.deepcopy(self._model)
        self._steps.call(technique, caller, HOOK, model=model, images=self._images, specs=dict(self._specs))

    def show_rest(self) -> None:
        """Show it to all that have not seen it yet."""
        for technique in self._steps.techniques:
            self.show(technique)
