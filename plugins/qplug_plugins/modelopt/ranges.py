"""ModelOpt's default calibration: ranges by the largest magnitude."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from qplug_plugins.modelopt.library import MODELOPT, LayerScales, entries, expressible, quantize, uniform

import qplug
from qplug import QuantizerChoice, QuantSpec, Site, Technique, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn


class Max(Technique):
    """amax = max|x| over the calibration images, by ``mtq.quantize`` with the algorithm ``max``.

    With 8 bits, this is ModelOpt's ``INT8_DEFAULT_CFG``. It quantizes weights and inputs of the layers that ModelOpt
    supports (linears, convolutions, LayerNorms), to symmetric integers with one scale per tensor, or per channel of a
    weight. Attention's matmuls and all other sites are left to the next technique. As in ModelOpt,
    s = amax/(2^(b−1) − 1), with signed integers for every tensor.
    """

    paper = "NVIDIA ModelOpt, INT8_DEFAULT_CFG"
    needs = (MODELOPT,)

    class Config(qplug.Config):
        """No parameters."""

        use: Literal["modelopt.max"] = Field("modelopt.max", description="name of the technique")

    @hookimpl
    def qplug_calibrate(self, model: nn.Module, images: Iterable[Tensor], specs: Mapping[str, QuantSpec]) -> None:
        """Let ModelOpt calibrate the model."""
        self.scales: dict[str, LayerScales] = quantize(model, entries(specs), "max", images, self.notes)

    @hookimpl
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec) -> QuantizerChoice | None:
        """Take the sites that ModelOpt calibrated."""
        amax = self.scales[site.module].amax.get(site.role) if site.module in self.scales else None
        if amax is None or not expressible(site.role, spec):
            return None
        if spec.granularity is qplug.Granularity.PER_TENSOR:
            amax = amax.max()
        return QuantizerChoice(uniform(amax, spec.bits), "amax of ModelOpt's MaxCalibrator")
