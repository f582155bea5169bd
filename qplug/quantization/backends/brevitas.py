"""The backend brevitas: ``QuantLinear``, ``QuantConv2d`` and ``QuantIdentity`` hold the quantized operations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import torch
from brevitas.inject import ExtendedInjector
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear
from brevitas.proxy.parameter_quant import WeightQuantProxyFromInjector
from brevitas.proxy.quant_proxy import QuantProxyFromInjector
from brevitas.proxy.runtime_quant import ActQuantProxyFromInjector
from torch import nn

from qplug.quantization.backends.brevitas_quant import InferenceHandler, tensor_quant
from qplug.quantization.backends.lowering import Lowering, like
from qplug.quantization.quantizers import Quantizer, UniformQuantizer


class BrevitasBackend(Lowering):
    """Uniform quantizers become brevitas's native integer quantizers, others a custom ``tensor_quant``."""

    name = "brevitas"
    layers: ClassVar = {nn.Linear: QuantLinear, nn.Conv2d: QuantConv2d}

    def layer(self, original: nn.Module, quantizers: Mapping[str, Quantizer]) -> nn.Module:
        """A layer of brevitas; ``None`` instead of an injector leaves a tensor in float."""
        injectors = {
            "weight_quant": _weight_injector(quantizers["weight"]) if "weight" in quantizers else None,
            "input_quant": _act_injector(quantizers["input"]) if "input" in quantizers else None,
        }
        layer = self.layers[type(original)]
        return _returning_tensors(like(original, layer, device=original.weight.device, **injectors))

    def activation(self, quantizer: Quantizer) -> nn.Module:
        """A ``QuantIdentity``."""
        return _returning_tensors(QuantIdentity(act_quant=_act_injector(quantizer), return_quant_tensor=False))

    @contextmanager
    def inference(self, model: nn.Module) -> Iterator[None]:
        """brevitas's export mode of its proxies: weights are quantized once, and activations in one buffer."""
        proxies = [proxy for proxy in _proxies(model) if not proxy.export_mode]  # the others belong to an outer context
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
        """Disables every proxy, and enables it again at the end."""
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


def _returning_tensors(lowered: nn.Module) -> nn.Module:
    """Let the proxies return torch's tensors: nothing here reads the scales that brevitas's own class carries."""
    for proxy in _proxies(lowered):
        proxy.skip_create_quant_tensor = True
    return lowered


def _act_injector(quantizer: Quantizer) -> type:
    return _injector(ActQuantProxyFromInjector, quantizer)


def _weight_injector(quantizer: Quantizer) -> type:
    return _injector(WeightQuantProxyFromInjector, quantizer)


def _injector(proxy: type, quantizer: Quantizer) -> type:
    """An injector that passes ``proxy`` a finished ``tensor_quant``. brevitas's exporters read the other entries."""
    namespace = {
        "proxy_class": proxy,
        "tensor_quant": tensor_quant(quantizer),
        "signed": quantizer.signed if isinstance(quantizer, UniformQuantizer) else True,
        "narrow_range": False,
        "bit_width": quantizer.bits,
    }
    return type("PlannedQuant", (ExtendedInjector,), namespace)
