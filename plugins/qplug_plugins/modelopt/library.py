"""Calls of ModelOpt, and the ranges and scales of its quantizers. ModelOpt is imported at the first call."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qplug import Extra, Granularity, QuantSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qplug import UniformQuantizer

MODELOPT = Extra("modelopt", "pip install 'qplug[modelopt]'")
SLOTS = {"weight": "weight_quantizer", "input": "input_quantizer"}
"""Role of a site → attribute of ModelOpt's layers that holds its quantizer."""


@dataclass(frozen=True)
class LayerScales:
    """ModelOpt's ranges and scale of one layer.

    Attributes:
        amax: role → largest magnitude, float32: (), or (O, 1, …) for the channels of a weight.
        scale: (C,) float32, the factor of the input and the divisor of the weight, before both are quantized.
    """

    amax: dict[str, Tensor]
    scale: Tensor | None


Entries = list[dict[str, Any]]
"""ModelOpt's ``quant_cfg``: patterns of quantizers and their settings; the last match is used."""


def entries(specs: Mapping[str, QuantSpec], bits: int | None = None, roles: Iterable[str] = tuple(SLOTS)) -> Entries:
    """ModelOpt's ``quant_cfg`` for the sites that its symmetric integers can express.

    Args:
        specs: specifications by site name.
        bits: bits of all sites, in place of the recipe's.
        roles: roles of the sites to include.
    """
    quant_cfg: Entries = [{"quantizer_name": "*", "enable": False}]
    for name, spec in specs.items():
        module, _, role = name.rpartition(".")
        if role in roles and expressible(role, spec):
            cfg = {"num_bits": bits or spec.bits, "axis": axis_of(spec.granularity)}
            quant_cfg.append({"quantizer_name": f"{module}.{SLOTS[role]}", "cfg": cfg})
    return quant_cfg


def axis_of(granularity: Granularity) -> int | None:
    """ModelOpt's ``axis``: 0, the output channels of a weight, or ``None`` for one scale."""
    return 0 if granularity is Granularity.PER_CHANNEL else None


def expressible(role: str, spec: QuantSpec) -> bool:
    """Whether ModelOpt supports the specification: symmetric, with one scale per tensor, or per channel of a weight."""
    known = (Granularity.PER_TENSOR, Granularity.PER_CHANNEL) if role == "weight" else (Granularity.PER_TENSOR,)
    return role in SLOTS and spec.symmetric and spec.granularity in known


def quantize(
    model: nn.Module,
    quant_cfg: Entries,
    algorithm: str | dict[str, Any],
    images: Iterable[Tensor],
    notes: list[str],
) -> dict[str, LayerScales]:
    """Call ``mtq.quantize`` on ``model``, in place; returns layer → its scales, for the layers that ModelOpt supports.

    ModelOpt's warnings about layers, for example that it skipped one, are appended to ``notes``.
    """
    if len(quant_cfg) < 2:
        return {}
    with quiet(layers_of(model), notes):
        import modelopt.torch.quantization as mtq

        def forward_loop(prepared: nn.Module) -> None:
            for batch in images:
                prepared(batch)

        mtq.quantize(model, {"quant_cfg": quant_cfg, "algorithm": algorithm}, forward_loop)
    layers = {name: _read(module) for name, module in model.named_modules() if hasattr(module, "input_quantizer")}
    return {name: scales for name, scales in layers.items() if scales.amax or scales.scale is not None}


def _read(layer: Any) -> LayerScales:
    quantizers = {role: getattr(layer, slot, None) for role, slot in SLOTS.items()}
    ranges = {role: q.amax for role, q in quantizers.items() if q is not None and q.is_enabled}
    scale = layer.input_quantizer.pre_quant_scale
    amax = {role: value.detach().float().clone() for role, value in ranges.items() if value is not None}
    return LayerScales(amax, None if scale is None else scale.detach().float().flatten().clone())


def uniform(amax: Tensor, bits: int) -> UniformQuantizer:
    """ModelOpt's signed symmetric integer quantizer, whose largest integer represents ``amax``."""
    import torch

    from qplug import UniformQuantizer

    top = (1 << (bits - 1)) - 1
    return UniformQuantizer((amax / top).clamp_min(torch.finfo(torch.float32).tiny), None, bits, True)


def layers_of(model: nn.Module) -> list[str]:
    """The names of the model's modules, as they occur in ModelOpt's warnings."""
    return [name for name, _ in model.named_modules() if name]


@contextmanager
def quiet(layers: Iterable[str] = (), notes: list[str] | None = None) -> Iterator[None]:
    """Context that suppresses ModelOpt's progress and its warnings about formats other than its presets.

    Args:
        layers: names of modules; warnings that contain one of them are not suppressed.
        notes: list to which these warnings are appended, each once.
    """
    sink, known = io.StringIO(), set(layers)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            yield
    texts = dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught)
    if notes is not None:
        notes += [text for text in texts if known & {word.strip(".,:;'\"") for word in text.split()}]
