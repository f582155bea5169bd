"""brevitas: ``QuantLinear``, ``QuantConv2d`` and ``QuantIdentity`` hold every quantised operation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from brevitas.inject import ExtendedInjector
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear
from brevitas.proxy.parameter_quant import WeightQuantProxyFromInjector
from brevitas.proxy.quant_proxy import QuantProxyFromInjector
from brevitas.proxy.runtime_quant import ActQuantProxyFromInjector
from torch import Tensor, nn

from qplug.backends.brevitas_quant import InferenceHandler, tensor_quant
from qplug.errors import InputError
from qplug.models.explicit import MatMul
from qplug.plan import Plan
from qplug.quantizers import Quantizer, UniformQuantizer
from qplug.seeding import seeded


class QuantMatMul(nn.Module):
    """A matmul of attention whose operands pass a ``QuantIdentity`` each (either may be absent)."""

    def __init__(self, original: MatMul, lhs: Quantizer | None, rhs: Quantizer | None) -> None:
        super().__init__()
        self.lhs_quant = _identity(lhs) if lhs else nn.Identity()
        self.rhs_quant = _identity(rhs) if rhs else nn.Identity()
        self.matmul = original

    def forward(self, lhs: Tensor, rhs: Tensor) -> Tensor:
        """As ``MatMul``, on fake-quantised operands."""
        out: Tensor = self.matmul(self.lhs_quant(lhs), self.rhs_quant(rhs))
        return out


class QuantInput(nn.Module):
    """A norm or Softmax whose input passes a ``QuantIdentity``."""

    def __init__(self, original: nn.Module, quantizer: Quantizer) -> None:
        super().__init__()
        self.input_quant = _identity(quantizer)
        self.operation = original

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """The original on its fake-quantised input; a mask is no value to quantise."""
        out: Tensor = self.operation(self.input_quant(x), *others)
        return out


class BrevitasBackend:
    """Uniform quantizers become brevitas's native integer quantizers, any other a custom ``tensor_quant``."""

    def apply(self, model: nn.Module, plan: Plan) -> nn.Module:
        """See ``Backend.apply``."""
        device = next(model.parameters()).device
        for path in plan.modules():
            parent, _, leaf = path.rpartition(".")
            original = model.get_submodule(path)
            with seeded(path):  # brevitas's layers draw weights before they get the model's
                lowered = _lower(path, original, plan.of(path))
            for proxy in _proxies(lowered):  # tensors of brevitas's own class would only carry scales that nobody reads
                proxy.skip_create_quant_tensor = True
            setattr(model.get_submodule(parent), leaf, lowered.eval().to(device))  # a stored plan is on the CPU
        return model

    @contextmanager
    def inference(self, model: nn.Module) -> Iterator[None]:
        """Proxies in brevitas's export mode: weights quantised once, activations in one buffer, plain tensors."""
        proxies = _proxies(model)
        for proxy in proxies:
            proxy.export_handler = InferenceHandler()
            proxy.export_mode = True
        try:
            with torch.no_grad():
                yield
        finally:
            for proxy in proxies:
                proxy.export_mode = False

    @contextmanager
    def switched_off(self, model: nn.Module) -> Iterator[None]:
        """Disables every proxy and enables it again."""
        proxies = _proxies(model)
        for proxy in proxies:
            proxy.disable_quant = True
        try:
            yield
        finally:
            for proxy in proxies:
                proxy.disable_quant = False


def _proxies(model: nn.Module) -> list[QuantProxyFromInjector]:
    return [m for m in model.modules() if isinstance(m, QuantProxyFromInjector) and m.is_quant_enabled]


def _lower(path: str, original: nn.Module, quantizers: Mapping[str, Quantizer]) -> nn.Module:
    if isinstance(original, MatMul):
        return QuantMatMul(original, quantizers.get("lhs"), quantizers.get("rhs"))
    if type(original) is nn.Linear or type(original) is nn.Conv2d:
        return _layer(original, quantizers)
    if isinstance(original, (nn.Linear, nn.Conv2d)):
        raise InputError(
            f"brevitas cannot hold a {type(original).__name__}, only the class that it derives from",
            where=path,
            fix=f"leave it in float: quantize.overrides: [{{match: '{path}', skip: true}}]",
        )
    return QuantInput(original, quantizers["input"])


def _layer(original: nn.Linear | nn.Conv2d, quantizers: Mapping[str, Quantizer]) -> nn.Module:
    weight_quant = _weight_injector(quantizers["weight"]) if "weight" in quantizers else None
    input_quant = _act_injector(quantizers["input"]) if "input" in quantizers else None
    more = {"bias": original.bias is not None, "weight_quant": weight_quant, "input_quant": input_quant}
    like = {"device": original.weight.device, "dtype": original.weight.dtype}
    layer: Any
    if isinstance(original, nn.Linear):
        layer = QuantLinear(original.in_features, original.out_features, **more, **like)
    else:
        layer = QuantConv2d(
            original.in_channels,
            original.out_channels,
            original.kernel_size,
            stride=original.stride,
            padding=original.padding,
            padding_mode=original.padding_mode,
            dilation=original.dilation,
            groups=original.groups,
            **more,
            **like,
        )
    layer.weight = original.weight
    layer.bias = original.bias
    quantized: nn.Module = layer
    return quantized


def _identity(quantizer: Quantizer) -> nn.Module:
    identity: nn.Module = QuantIdentity(act_quant=_act_injector(quantizer), return_quant_tensor=False)
    return identity


def _act_injector(quantizer: Quantizer) -> type:
    return _injector(ActQuantProxyFromInjector, quantizer)


def _weight_injector(quantizer: Quantizer) -> type:
    return _injector(WeightQuantProxyFromInjector, quantizer)


def _injector(proxy: type, quantizer: Quantizer) -> type:
    """The injector that gives ``proxy`` a finished ``tensor_quant``; the rest is what exporters read."""
    namespace = {
        "proxy_class": proxy,
        "tensor_quant": tensor_quant(quantizer),
        "signed": quantizer.signed if isinstance(quantizer, UniformQuantizer) else True,
        "narrow_range": False,
        "bit_width": quantizer.bits,
    }
    return type("PlannedQuant", (ExtendedInjector,), namespace)
