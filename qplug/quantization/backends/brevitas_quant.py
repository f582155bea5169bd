"""Quantizers as brevitas's ``tensor_quant`` modules, and their fast form at inference."""

from __future__ import annotations

from typing import Any

import torch
from brevitas.core.bit_width import BitWidthConst
from brevitas.core.function_wrapper import Identity, TensorClamp
from brevitas.core.function_wrapper.ops_ste import RoundSte
from brevitas.core.quant import IntQuant, RescalingIntQuant
from brevitas.core.scaling import ParameterScaling
from brevitas.core.utils import StatelessBuffer
from brevitas.core.zero_point import ZeroZeroPoint
from brevitas.proxy.parameter_quant import WeightQuantProxyFromInjector
from torch import Tensor, nn

from qplug.quantization.quantizers import Quantizer, UniformQuantizer


class UnitThreshold(nn.Module):
    """An integer threshold of 1, which makes brevitas's threshold exactly the scale at any bit width."""

    def __init__(self) -> None:
        super().__init__()
        self.one = StatelessBuffer(torch.tensor(1.0))

    def forward(self, bit_width: Tensor) -> Tensor:
        """1 for every bit width."""
        one: Tensor = self.one()
        return one


class FixedZeroPoint(nn.Module):
    """The plan's zero point: integers in float32, or any float32 if the plan has float zero points."""

    def __init__(self, zero_point: Tensor) -> None:
        super().__init__()
        self.value = StatelessBuffer(zero_point.clone())

    def forward(self, x: Tensor, scale: Tensor, bit_width: Tensor) -> Tensor:
        """The zero point, broadcastable with ``scale``."""
        value: Tensor = self.value()
        return value


class CustomTensorQuant(nn.Module):
    """A quantizer that is not uniform, behind brevitas's interface: values, scale, zero point, bit width.

    Such a quantizer has no single scale. It returns 1 and 0 instead, and nothing in this backend reads them.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.scale, self.zero_point = StatelessBuffer(torch.tensor(1.0)), StatelessBuffer(torch.tensor(0.0))
        self.bit_width = BitWidthConst(quantizer.bits)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Fake-quantize ``x``."""
        return self.quantizer(x), self.scale(), self.zero_point(), self.bit_width()


def tensor_quant(quantizer: Quantizer) -> nn.Module:
    """brevitas's native integer quantizer for a uniform one, with its scale as a parameter that can be learned."""
    if not isinstance(quantizer, UniformQuantizer):
        return CustomTensorQuant(quantizer)
    integers = IntQuant(
        narrow_range=False,
        signed=quantizer.signed,
        input_view_impl=Identity(),
        float_to_int_impl=RoundSte(),
        tensor_clamp_impl=TensorClamp(),
    )
    native: nn.Module = RescalingIntQuant(
        int_quant=integers,
        scaling_impl=ParameterScaling(quantizer.scale.clone()),
        int_scaling_impl=UnitThreshold(),
        zero_point_impl=ZeroZeroPoint() if quantizer.symmetric else FixedZeroPoint(quantizer.zero_point),
        bit_width_impl=BitWidthConst(quantizer.bits),
    )
    return native


def planned(module: Any) -> Quantizer:
    """The quantizer that a ``tensor_quant`` holds now, with its learned scale."""
    if isinstance(module, CustomTensorQuant):
        return module.quantizer
    like = module.scaling_impl.value
    bits = int(module.msb_clamp_bit_width_impl())
    zero = None if isinstance(module.zero_point_impl, ZeroZeroPoint) else module.zero_point_impl.value()
    scale = module.scaling_impl(like, module.int_scaling_impl(like))
    return UniformQuantizer(scale, zero, bits, module.int_quant.signed)


class InferenceHandler(nn.Module):
    """A proxy's replacement of its ``tensor_quant`` in brevitas's export mode: the same values, in one buffer.

    brevitas's own inference handlers allocate memory at every operation, and importing them needs onnx.
    """

    def __init__(self) -> None:
        super().__init__()
        self.quantizer: Quantizer | None = None
        self.cached: Tensor | None = None

    def prepare_for_export(self, proxy: Any) -> None:
        """Take over the quantizer of a proxy that enters export mode, and quantize a weight once."""
        weight = isinstance(proxy, WeightQuantProxyFromInjector)
        self.quantizer = planned(proxy.tensor_quant if weight else proxy.fused_activation_quant_proxy.tensor_quant)
        if weight:
            self.cached = self.quantizer.infer(proxy.tracked_parameter_list[0].detach())

    def attach_debug_info(self, proxy: Any) -> None:
        """Do nothing; brevitas's protocol requires this method."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """The values, without a scale. A weight's were computed when inference began."""
        if self.cached is not None:
            return self.cached, None
        assert self.quantizer is not None
        return self.quantizer.infer(x), None
