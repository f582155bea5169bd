"""NVIDIA ModelOpt: its layers and ``TensorQuantizer``s hold every quantized operation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from qplug.quantization.backends.lowering import Lowering, like
from qplug.quantization.backends.modelopt_quant import Planned, tensor_quantizer
from qplug.quantization.quantizers import Quantizer

with warnings.catch_warnings():  # of every library that it could serve and that is of a version it did not expect
    warnings.simplefilter("ignore")
    from modelopt.torch.quantization.nn import QuantConv2d, QuantLinear, TensorQuantizer


class ModelOptBackend(Lowering):
    """Every quantizer becomes a ``TensorQuantizer`` that computes it exactly: see ``modelopt_quant``."""

    name = "ModelOpt"

    def layer(self, original: nn.Linear | nn.Conv2d, quantizers: Mapping[str, Quantizer]) -> nn.Module:
        """``QuantLinear`` or ``QuantConv2d``; a tensor that the plan leaves out has its quantizer disabled."""
        layer = like(original, QuantLinear, QuantConv2d, device="meta")
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
        """Weights are quantized once, activations in one buffer."""
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
        """Disables every ``TensorQuantizer`` and enables it again."""
        enabled = [module for module in model.modules() if isinstance(module, TensorQuantizer) and module.is_enabled]
        for one in enabled:
            one.disable()
        try:
            yield
        finally:
            for one in enabled:
                one.enable()
