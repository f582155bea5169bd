"""brevitas: ``QuantLinear``, ``QuantConv2d`` and ``QuantIdentity`` hold every quantized operation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

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
    """Uniform quantizers become brevitas's native integer quantizers, any other a custom ``tensor_quant``."""

    name = "brevitas"

    def layer(self, original: nn.Linear | nn.Conv2d, quantizers: Mapping[str, Quantizer]) -> nn.Module:
        """See ``Lowering.layer``."""
        return _plain(_layer(original, quantizers))

    def activation(self, quantizer: Quantizer) -> nn.Module:
        """A ``QuantIdentity``."""
        return _plain(QuantIdentity(act_quant=_act_injector(quantizer), return_quant_tensor=False))

    @contextmanager
    def inference(self, model: nn.Module) -> Iterator[None]:
        """Proxies in brevitas's export mode: weights quantized once, activations in one buffer, plain tensors."""
        proxies = [proxy for proxy in _proxies(model) if not proxy.export_mode]  # others belong to one around this
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


def _plain(lowered: nn.Module) -> nn.Module:
    """Tensors of brevitas's own class would only carry scales that nobody reads."""
    for proxy in _proxies(lowered):
        proxy.skip_create_quant_tensor = True
    return lowered


def _layer(original: nn.Linear | nn.Conv2d, quantizers: Mapping[str, Quantizer]) -> nn.Module:
    weight_quant = _weight_injector(quantizers["weight"]) if "weight" in quantizers else None
    input_quant = _act_injector(quantizers["input"]) if "input" in quantizers else None
    more = {"weight_quant": weight_quant, "input_quant": input_quant}
    return like(original, QuantLinear, QuantConv2d, device=original.weight.device, **more)


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
