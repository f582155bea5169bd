"""ModelOpt's SmoothQuant and AWQ: scales between a layer's input and its weight, found by ModelOpt's code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from qplug_plugins.modelopt.library import MODELOPT, Found, entries, expressible, quantize, uniform

import qplug
from qplug import NormGroup, QuantizerChoice, QuantSpec, Site, Smoothing, Technique, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

INT8 = 8


class _Scales(Technique):
    """Uses the scale p that ModelOpt found for each layer: the input becomes x·p, and the weight W/p.

    Where the only reader of a norm's output is the layer, p is folded into the norm and the weight, and the next
    technique estimates ranges. Any other input cannot be scaled before: there the quantizers of ``roles`` hold p, with
    ModelOpt's amax, which is what its ``pre_quant_scale`` computes.
    """

    needs = (MODELOPT,)
    roles: tuple[str, ...] = ()
    found: dict[str, Found]

    def _begin(self, found: dict[str, Found]) -> None:
        self.found = {name: one for name, one in found.items() if one.scale is not None}
        self.folded: set[str] = set()

    @hookimpl
    def qplug_smooth(self, group: NormGroup) -> Smoothing | None:
        """Fold what ModelOpt found for the one linear that reads the norm."""
        import torch

        found = self.found.get(group.linears[0])
        if len(group.linears) > 1 or found is None or found.scale is None:
            return None
        self.folded.add(group.linears[0])
        return Smoothing(torch.zeros_like(found.scale), 1.0 / found.scale, "pre_quant_scale of ModelOpt")

    @hookimpl
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec) -> QuantizerChoice | None:
        """Take what ``roles`` name of the linears whose scale could not be folded."""
        from qplug_plugins.modelopt.quantizer import ScaledQuantizer

        found = self.found.get(site.module)
        if found is None or found.scale is None or site.module in self.folded or site.role not in self.roles:
            return None
        if site.role not in found.amax or not expressible(site.role, spec):
            return None
        amax = found.amax[site.role]
        if spec.granularity is qplug.Granularity.PER_TENSOR:
            amax = amax.max()
        factor = found.scale if site.role == "input" else 1.0 / found.scale
        return QuantizerChoice(
            ScaledQuantizer(uniform(amax, spec.bits), factor), "pre_quant_scale and amax of ModelOpt"
        )


class SmoothQuant(_Scales):
    """Range moved from the inputs of linears into their weights, by ``mtq.quantize`` with ``smoothquant``.

    p_j = max|W_j|^(1 − alpha)/max|x_j|^alpha for input channel j of every linear by itself, clamped to 10^±4. ModelOpt
    smooths 8-bit layers alone; p does not depend on the bits, so it is asked at 8 whatever the recipe's bits are. With
    ``modelopt.max`` behind it this is ``INT8_SMOOTHQUANT_CFG``.
    """

    paper = "NVIDIA ModelOpt, INT8_SMOOTHQUANT_CFG; Xiao et al. 2023, SmoothQuant"
    roles = ("weight", "input")

    class Config(qplug.Config):
        """How far."""

        use: Literal["modelopt.smooth_quant"] = Field(
            "modelopt.smooth_quant", description="which technique this step is"
        )
        alpha: float = Field(
            1.0,
            ge=0.0,
            le=1.0,
            description="share of the range that weights take over, without unit",
        )

    @hookimpl
    def qplug_calibrate(self, model: nn.Module, images: Iterable[Tensor], specs: Mapping[str, QuantSpec]) -> None:
        """Let ModelOpt smooth every linear whose weight and input are both quantized."""
        algorithm = {"method": "smoothquant", "alpha": self.config.alpha}
        self._begin(quantize(model, entries(_both(specs), INT8), algorithm, images, self.notes))


class AwqLite(_Scales):
    """Scales that protect the weights of important input channels, by ``mtq.quantize`` with ``awq_lite``.

    ModelOpt takes s_j = mean|x_j|^a/mean|W_j|^(1 − a), normalized, with the a in steps of 0.1 at which the linear's own
    output moves least under weights of the recipe's bits. Its preset for 4 bits has a scale for every 128 inputs; here
    a weight has what the recipe asks, one for the tensor or for each channel. Only weights hold a scale that could not
    be folded: an input is quantized as it is.
    """

    paper = "NVIDIA ModelOpt, INT4_AWQ_CFG; Lin et al. 2024, AWQ"
    roles = ("weight",)

    class Config(qplug.Config):
        """How fine the search is."""

        use: Literal["modelopt.awq_lite"] = Field("modelopt.awq_lite", description="which technique this step is")
        alpha_step: float = Field(0.1, gt=0.0, le=1.0, description="distance between the exponents that are tried")

    @hookimpl
    def qplug_calibrate(self, model: nn.Module, images: Iterable[Tensor], specs: Mapping[str, QuantSpec]) -> None:
        """Let ModelOpt search for every quantized weight."""
        algorithm = {"method": "awq_lite", "alpha_step": self.config.alpha_step}
        self._begin(quantize(model, entries(specs, roles=self.roles), algorithm, images, self.notes))


def _both(specs: Mapping[str, QuantSpec]) -> dict[str, Any]:
    """The weights and inputs of which ModelOpt can quantize the partner too."""
    able = {name for name, spec in specs.items() if expressible(name.rpartition(".")[2], spec)}
    partner = {"weight": "input", "input": "weight"}
    return {
        name: specs[name]
        for name in specs
        if name in able and f"{name.rpartition('.')[0]}.{partner[name.rpartition('.')[2]]}" in able
    }
