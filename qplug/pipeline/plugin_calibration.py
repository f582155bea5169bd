"""Techniques with a calibration of their own: each gets the model and the images once, in its turn."""

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
        caller: the techniques.
        model: the float model, held by reference; each technique gets a copy.
        images: the calibration batches, on the model's device, for any number of passes.
        specs: of the recipe, by site name.
    """

    def __init__(
        self, caller: TechniqueCaller, model: nn.Module, images: Iterable[Tensor], specs: Mapping[str, QuantSpec]
    ) -> None:
        self._caller, self._model, self._images, self._specs = caller, model, images, specs
        self._waiting = {id(technique): hook for technique, hook in caller.each_technique(HOOK)}

    def run(self, technique: Technique) -> None:
        """Let ``technique`` calibrate on the model as it is now, unless it has already."""
        hook = self._waiting.pop(id(technique), None)
        if hook is None:
            return
        model = copy.deepcopy(self._model)
        self._caller.call(technique, hook, HOOK, model=model, images=self._images, specs=dict(self._specs))

    def run_rest(self) -> None:
        """Let every other technique calibrate."""
        for technique in self._caller.techniques:
            self.run(technique)
