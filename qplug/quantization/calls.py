"""A check that every quantized module is called as often as calibration saw: what measures float is refused by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from qplug.core.errors import InputError, PluginError
from qplug.core.text import listed
from qplug.quantization.plan import Plan

FIX = (
    "call the module instead of reading its weight, or leave it in float: "
    "quantize.overrides: [{{match: '{match}', skip: true}}]"
)


@contextmanager
def checked_calls(model: nn.Module, plan: Plan, where: str) -> Iterator[None]:
    """Within it, every forward of ``model`` must call each module of ``plan`` as often as calibration saw.

    The hooks belong to no module: torch leaves its fused kernels where a module has a hook.

    Args:
        model: lowered by ``plan``.
        plan: with the calls of its modules.
        where: what the model is, as the error names it.

    Raises:
        InputError: a module was called less often. It names the module and its sites.
        PluginError: the backend left no module at a planned path.
    """
    names = {id(_planned(model, name, where)): name for name in plan.modules()}
    now: Counter[str] = Counter()

    def enter(module: nn.Module, _: Any) -> None:
        if module is model:
            now.clear()
        if id(module) in names:
            now[names[id(module)]] += 1

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        if module is model:
            check_calls(now, plan, where)

    handles = [hooks.register_module_forward_pre_hook(enter), hooks.register_module_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _planned(model: nn.Module, name: str, where: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise PluginError(
            f"the backend left no module at {name}, so that nobody can count its calls",
            where=where,
            fix="let the backend replace each planned module at its path (Backend.apply)",
        ) from error


def check_one_forward(model: nn.Module, plan: Plan, example: Tensor, where: str) -> None:
    """Check the calls of one forward without gradients, on a batch of one; raises ``InputError``."""
    with checked_calls(model, plan, where), torch.no_grad():
        model(example)


def check_calls(calls: Mapping[str, int], plan: Plan, where: str) -> None:
    """Check the calls of one forward, by module; raises ``InputError`` where one was called less often."""
    missed = {name: calls.get(name, 0) for name in plan.modules() if calls.get(name, 0) < plan.calls.get(name, 0)}
    if missed:
        parts = [
            f"{name} ({', '.join(plan.of(name))}) {count} × instead of {plan.calls[name]} ×"
            for name, count in missed.items()
        ]
        raise InputError(
            f"{where} calls quantized modules less often than calibration saw, and computes in float past them: "
            f"{listed(parts, 5)}",
            where=next(iter(missed)),
            fix=FIX.format(match=next(iter(missed))),
        )


def refuse_bypassed(bypassed: Mapping[str, str], names: Iterable[str]) -> None:
    """Raise ``InputError`` if a site of ``names`` is one of ``SiteMap.bypassed``, with all of them."""
    found = {name: bypassed[name] for name in names if name in bypassed}
    if found:
        raise InputError(
            f"the model computes past a quantizer: {listed([f'{name}: {why}' for name, why in found.items()], 5)}",
            where=next(iter(found)),
            fix=FIX.format(match=next(iter(found))),
        )
