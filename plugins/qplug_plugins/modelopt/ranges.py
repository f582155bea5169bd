"""ModelOpt's default calibration: the largest magnitude that its calibrators see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from qplug_plugins.modelopt.library import MODELOPT, Found, entries, expressible, quantize, uniform

import qplug
from qplug import QuantizerChoice, QuantSpec, Site, Technique, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn


class Max(Technique):
    """amax = max|x| over the calibration images, found by ``mtq.quantize`` with the algorithm ``max``.

    With 8 bits this is ModelOpt's ``INT8_DEFAULT_CFG``. It takes weights and inputs of the layers that ModelOpt knows
    (linears, convolutions, LayerNorms), where the recipe asks for symmetric integers with one scale a tensor, or a
    channel of a weight; attention's matmuls and the rest are left to the next technique. s = amax/(2^(b−1) − 1), signed
    for every tensor, as ModelOpt has it.
    """

    paper = "NVIDIA ModelOpt, INT8_DEFAULT_CFG"
    needs = (MODELOPT,)

    class Config(qplug.Config):
        """There is nothing to choose."""

        use: Literal["modelopt.max"] = Field("modelopt.max", description="which technique this step is")

    @hookimpl
    def qplug_calibrate(self, model: nn.Module, images: Iterable[Tensor], specs: Mapping[str, QuantSpec]) -> None:
        """Let ModelOpt calibrate."""
        self.found: dict[str, Found] = quantize(model, entries(specs), "max", images, self.notes)

    @hookimpl
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec) -> QuantizerChoice | None:
        """Take what ModelOpt calibrated."""
        amax = self.found[site.module].amax.get(site.role) if site.module in self.found else None
        if amax is None or not expressible(site.role, spec):
            return None
        if spec.granularity is qplug.Granularity.PER_TENSOR:
            amax = amax.max()
        return QuantizerChoice(uniform(amax, spec.bits), "amax of ModelOpt's MaxCalibrator")
