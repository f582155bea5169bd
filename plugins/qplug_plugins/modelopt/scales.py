"""ModelOpt's SmoothQuant and AWQ: scales between the input and the weight of a layer, computed by ModelOpt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from qplug_plugins.modelopt.library import MODELOPT, LayerScales, entries, expressible, quantize, uniform

import qplug
from qplug import NormGroup, QuantizerChoice, QuantSpec, Site, Smoothing, Technique, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

INT8 = 8


class _Scales(Technique):
    """Base of techniques with a scale p per layer from ModelOpt: the input becomes x·p, and the weight W/p.

    If the layer is the only reader of a norm, p is folded into the norm and the weight, and the next technique
    estimates the ranges. For any other input, the quantizers of ``roles`` apply p, with ModelOpt's amax, as its
    ``pre_quant_scale`` does.
    """

    needs = (MODELOPT,)
    roles: tuple[str, ...] = ()
    scales: dict[str, LayerScales]

    def _begin(self, scales: dict[str, LayerScales]) -> None:
        self.scales = {name: layer for name, layer in scales.items() if layer.scale is not None}
        self.folded: set[str] = set()

    @hookimpl
    def qplug_smooth(self, group: NormGroup) -> Smoothing | None:
        """Fold ModelOpt's scale of the linear that alone reads the norm."""
        import torch

        layer = self.scales.get(group.linears[0])
        if len(group.linears) > 1 or layer is None or layer.scale is None:
            return None
        self.folded.add(group.linears[0])
        return Smoothing(torch.zeros_like(layer.scale), 1.0 / layer.scale, "pre_quant_scale of ModelOpt")

    @hookimpl
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec) -> QuantizerChoice | None:
        """Take the sites of ``roles`` of linears whose scale could not be folded."""
        from qplug_plugins.modelopt.quantizer import ScaledQuantizer

        layer = self.scales.get(site.module)
        if layer is None or layer.scale is None or site.module in self.folded or site.role not in self.roles:
            return None
        if site.role not in layer.amax or not expressible(site.role, spec):
            return None
        amax = layer.amax[site.role]
        if spec.granularity is qplug.Granularity.PER_TENSOR:
            amax = amax.max()
        factor = layer.scale if site.role == "input" else 1.0 / layer.scale
        return QuantizerChoice(
            ScaledQuantizer(uniform(amax, spec.bits), factor), "pre_quant_scale and amax of ModelOpt"
        )


class SmoothQuant(_Scales):
    """Smoothing that moves the range of a linear's input to its weight, by ``mtq.quantize`` with ``smoothquant``.

    p_j = max|W_j|^(1 − alpha)/max|x_j|^alpha for input channel j of each linear, clamped to 10^±4. ModelOpt only
    smooths 8-bit layers. p does not depend on the bits, so this technique always passes 8 bits to ModelOpt. With
    ``modelopt.max`` after it, this is ``INT8_SMOOTHQUANT_CFG``.
    """

    paper = "NVIDIA ModelOpt, INT8_SMOOTHQUANT_CFG; Xiao et al. 2023, SmoothQuant"
    roles = ("weight", "input")

    class Config(qplug.Config):
        """The exponent."""

        use: Literal["modelopt.smooth_quant"] = Field("modelopt.smooth_quant", description="name of the technique")
        alpha: float = Field(
            1.0,
            ge=0.0,
            le=1.0,
            description="exponent of the activation's range in the scale, without unit",
        )

    @hookimpl
    def qplug_calibrate(self, model: nn.Module, images: Iterable[Tensor], specs: Mapping[str, QuantSpec]) -> None:
        """Let ModelOpt smooth every linear whose weight and input are both quantized."""
        algorithm = {"method": "smoothquant", "alpha": self.config.alpha}
        self._begin(quantize(model, entries(_both(specs), INT8), algorithm, images, self.notes))


class AwqLite(_Scales):
    """Scales that reduce the error of weights of important input channels, by ``mtq.quantize`` with ``awq_lite``.

    ModelOpt takes s_j = mean|x_j|^a/mean|W_j|^(1 − a), normalized. It searches a in steps of 0.1 for the least change
    of the linear's output with weights at the recipe's bits. Its preset for 4 bits has a scale per 128 inputs; here
    weights have the recipe's granularity, per tensor or per channel. A scale that cannot be folded is applied in the
    quantizer of the weight only; the input is quantized without it.
    """

    paper = "NVIDIA ModelOpt, INT4_AWQ_CFG; Lin et al. 2024, AWQ"
    roles = ("weight",)

    class Config(qplug.Config):
        """The resolution of the search."""

        use: Literal["modelopt.awq_lite"] = Field("modelopt.awq_lite", description="name of the technique")
        alpha_step: float = Field(0.1, gt=0.0, le=1.0, description="distance between the candidate exponents")

    @hookimpl
    def qplug_calibrate(self, model: nn.Module, images: Iterable[Tensor], specs: Mapping[str, QuantSpec]) -> None:
        """Let ModelOpt search for every quantized weight."""
        algorithm = {"method": "awq_lite", "alpha_step": self.config.alpha_step}
        self._begin(quantize(model, entries(specs, roles=self.roles), algorithm, images, self.notes))


def _both(specs: Mapping[str, QuantSpec]) -> dict[str, Any]:
    """The specifications of layers whose weight and input ModelOpt can both quantize."""
    able = {name for name, spec in specs.items() if expressible(name.rpartition(".")[2], spec)}
    partner = {"weight": "input", "input": "weight"}
    return {
        name: specs[name]
        for name in specs
        if name in able and f"{name.rpartition('.')[0]}.{partner[name.rpartition('.')[2]]}" in able
    }
