"""Calling ModelOpt on a model, and reading what its quantizers hold; it is imported where it is called."""

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
"""Role of a site → where ModelOpt's layers hold its quantizer."""


@dataclass(frozen=True)
class Found:
    """What ModelOpt found for one layer.

    Attributes:
        amax: role → largest magnitude: () or, one a channel of a weight, (O, 1, …) float32.
        scale: (C,) float32, what the input is multiplied by, and the weight divided by, before both are quantized.
    """

    amax: dict[str, Tensor]
    scale: Tensor | None


Entries = list[dict[str, Any]]
"""ModelOpt's ``quant_cfg``: patterns over its quantizers and what becomes of them; the last that matches wins."""


def entries(specs: Mapping[str, QuantSpec], bits: int | None = None, roles: Iterable[str] = tuple(SLOTS)) -> Entries:
    """ModelOpt's ``quant_cfg`` for these sites: all that its symmetric integers can express, and nothing else.

    Args:
        specs: what the recipe asks, by site name.
        bits: for all of them, in the place of the recipe's.
        roles: of the sites.
    """
    made: Entries = [{"quantizer_name": "*", "enable": False}]
    for name, spec in specs.items():
        module, _, role = name.rpartition(".")
        if role in roles and expressible(role, spec):
            cfg = {"num_bits": bits or spec.bits, "axis": axis_of(spec.granularity)}
            made.append({"quantizer_name": f"{module}.{SLOTS[role]}", "cfg": cfg})
    return made


def axis_of(granularity: Granularity) -> int | None:
    """ModelOpt's ``axis``: that of a weight's output channels, or ``None`` for one scale."""
    return 0 if granularity is Granularity.PER_CHANNEL else None


def expressible(role: str, spec: QuantSpec) -> bool:
    """Whether ModelOpt's integers have it: symmetric, and one scale a tensor, or for weights a channel."""
    known = (Granularity.PER_TENSOR, Granularity.PER_CHANNEL) if role == "weight" else (Granularity.PER_TENSOR,)
    return role in SLOTS and spec.symmetric and spec.granularity in known


def quantize(
    model: nn.Module,
    quant_cfg: Entries,
    algorithm: str | dict[str, Any],
    images: Iterable[Tensor],
    notes: list[str],
) -> dict[str, Found]:
    """``mtq.quantize`` on ``model``, in place: layer → what was found. Layers that it does not know are left out.

    What ModelOpt says of a layer, such as that it gave it up, goes to ``notes``.
    """
    if len(quant_cfg) < 2:
        return {}
    with quiet(layers_of(model), notes):
        import modelopt.torch.quantization as mtq

        def show(shown: nn.Module) -> None:
            for batch in images:
                shown(batch)

        mtq.quantize(model, {"quant_cfg": quant_cfg, "algorithm": algorithm}, show)
    found = {name: _read(module) for name, module in model.named_modules() if hasattr(module, "input_quantizer")}
    return {name: one for name, one in found.items() if one.amax or one.scale is not None}


def _read(layer: Any) -> Found:
    quantizers = {role: getattr(layer, slot, None) for role, slot in SLOTS.items()}
    held = {role: one.amax for role, one in quantizers.items() if one is not None and one.is_enabled}
    scale = layer.input_quantizer.pre_quant_scale
    amax = {role: value.detach().float().clone() for role, value in held.items() if value is not None}
    return Found(amax, None if scale is None else scale.detach().float().flatten().clone())


def uniform(amax: Tensor, bits: int) -> UniformQuantizer:
    """The signed symmetric integers that ModelOpt has for ``amax``, which is the largest of them."""
    import torch

    from qplug import UniformQuantizer

    top = (1 << (bits - 1)) - 1
    return UniformQuantizer((amax / top).clamp_min(torch.finfo(torch.float32).tiny), None, bits, True)


def layers_of(model: nn.Module) -> list[str]:
    """The names of its modules, by which ModelOpt's warnings call them."""
    return [name for name, _ in model.named_modules() if name]


@contextmanager
def quiet(layers: Iterable[str] = (), notes: list[str] | None = None) -> Iterator[None]:
    """ModelOpt prints progress and warns of formats that are not its presets; neither is news to who reads a plan.

    Args:
        layers: names of modules; a warning that names one is news.
        notes: where such go, each once.
    """
    nowhere, known = io.StringIO(), set(layers)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
    said = dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught)
    if notes is not None:
        notes += [text for text in said if known & {word.strip(".,:;'\"") for word in text.split()}]
