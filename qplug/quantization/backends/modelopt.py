"""The backend NVIDIA ModelOpt: its layers and ``TensorQuantizer``s hold the quantized operations."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import nn

from qplug.quantization.backends.lowering import Lowering, like
from qplug.quantization.backends.modelopt_quant import Planned, tensor_quantizer
from qplug.quantization.quantizers import Quantizer

with warnings.catch_warnings():  # ModelOpt warns about every installed library of another version than it expects
    warnings.simplefilter("ignore")
    from modelopt.torch.quantization.nn import QuantConv2d, QuantLinear, TensorQuantizer


class ModelOptBackend(Lowering):
    """Every quantizer becomes a ``TensorQuantizer`` that computes its exact values; see ``modelopt_quant``."""

    name = "ModelOpt"
    layers: ClassVar = {nn.Linear: QuantLinear, nn.Conv2d: QuantConv2d}

    def layer(self, original: nn.Module, quantizers: Mapping[str, Quantizer]) -> nn.Module:
        """A layer of ModelOpt. The quantizer of a tensor that stays in float is disabled."""
        layer = like(original, self.layers[type(original)], device="meta")
        for role, slot in (("weight", "weight_quantizer"), ("input", "input_quantizer")):
            if role in quantizers:
                setattr(layer, slot, tensor_quantizer(quantizers[role], weight=role == "weight"))
            else:
                getattr(layer, slot).disable()
        return layer

    def activation(self, quantizer: Quantizer) -> nn.Module:
        """A ``TensorQuantizer``."""
        made: nn.Module = tensor_quantizer(quantizer)
        return made

    @contextmanager
    def inference(self, model: nn.Module) -> Iterator[None]:
        """Quantizes weights once, and activations in one buffer."""
        planned = [module for module in model.modules() if isinstance(module, Planned) and not module.inferring]
        for one in planned:
            one.begin_inference()
        try:
            with torch.no_grad():
                yield
        finally:
            for one in planned:
                one.end_inference()

    @contextmanager
    def switched_off(self, model: nn.Module) -> Iterator[None]:
        """Disables every ``TensorQuantizer``, and enables it again at the end."""
        enabled = [module for module in model.modules() if isinstance(module, TensorQuantizer) and module.is_enabled]
        for one in enabled:
            one.disable()
        try:
            yield
        finally:
            for one in enabled:
                one.enable()
