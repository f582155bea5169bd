"""Lowering of a plan: each planned module is replaced by the module that computes its quantized operation.

Backends and export formats share this walk. Each brings a table of its own: module type → maker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn

from qplug.core.errors import InputError
from qplug.core.seeding import seeded
from qplug.core.types import Role
from qplug.models.surgery import Replacer
from qplug.quantization.plan import Decision, Plan

Maker = Callable[[Any, Mapping[Role, Decision]], nn.Module]
"""A planned module and its decisions by role → the module that replaces it."""


def replace_planned(
    model: nn.Module, plan: Plan, makers: Mapping[type[nn.Module], Maker], other: Maker, target: str
) -> None:
    """Replace every planned module of ``model`` in place, under each of its names.

    Args:
        model: in eval mode, with explicit attention.
        plan: of the model.
        makers: module type → maker for modules of exactly this type.
        other: maker for every module of an unrelated type, such as a norm or a Softmax.
        target: backend or file that holds the new modules, as the error names it.

    Raises:
        InputError: a module's type derives from a type of ``makers``, so its forward may compute something else.
    """
    device, replacer = _device(model, plan), Replacer(model)
    for path, decisions in _by_module(plan).items():
        original = model.get_submodule(path)
        make = _maker(path, original, makers, other, target)
        with seeded(path):  # a library's layer may draw random weights before it receives the model's
            made = make(original, decisions)
        replacer.replace(original, made.eval().to(device))


def refusals(model: nn.Module, paths: Iterable[str], kinds: Iterable[type[nn.Module]], target: str) -> dict[str, str]:
    """Module → the reason why ``target``, which holds modules of exactly these types, cannot hold it."""
    kinds = tuple(kinds)
    reasons = {path: _refusal(model.get_submodule(path), kinds, target) for path in dict.fromkeys(paths)}
    return {path: reason for path, reason in reasons.items() if reason}


def _refusal(original: nn.Module, kinds: tuple[type[nn.Module], ...], target: str) -> str:
    if type(original) in kinds:
        return ""
    base = next((base for base in kinds if isinstance(original, base)), None)
    if base is None:
        return ""
    return f"{target} cannot hold a {type(original).__name__}, only the {base.__name__} that it derives from"


def _by_module(plan: Plan) -> dict[str, dict[Role, Decision]]:
    """Module → its decisions by role, in model order."""
    found: dict[str, dict[Role, Decision]] = {}
    for decision in plan:
        found.setdefault(decision.site.module, {})[decision.site.role] = decision
    return found


def _device(model: nn.Module, plan: Plan) -> torch.device:
    """The model's device. A part of a model may have no parameters; the plan's quantizers then decide."""
    tensors = chain(model.parameters(), *(decision.quantizer.buffers() for decision in plan))
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _maker(path: str, original: nn.Module, makers: Mapping[type[nn.Module], Maker], other: Maker, target: str) -> Maker:
    refusal = _refusal(original, tuple(makers), target)
    if not refusal:
        return makers.get(type(original), other)
    raise InputError(
        refusal,
        where=path,
        fix=f"leave it in float: quantize.overrides: [{{match: '{path}', skip: true}}]",
    )
