"""Blocks for reconstruction: residual and transformer blocks, and single operations outside every block."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable

import torch
from torch import Tensor, nn

from qplug.models.surgery import put
from qplug.quantization.backends.base import Backend
from qplug.quantization.plan import Plan


def find_blocks(model: nn.Module, operations: Iterable[str], image: Tensor, classes: Container[str]) -> list[str]:
    """Paths of the blocks that contain ``operations``, in the order in which a forward of ``image`` enters them.

    An operation outside every block is a block by itself. A nested block is part of its outermost block.

    Args:
        model: the float model.
        operations: paths of modules.
        image: (1, C, H, W) float32.
        classes: ``module:Class`` of each block class, as ``qplug_blocks`` declares it; subclasses are blocks too.
    """
    tops = [name for name, module in model.named_modules() if name and _is_block(module, classes)]
    tops = [name for name in tops if not any(name.startswith(f"{top}.") for top in tops)]
    blocks = dict.fromkeys(next((t for t in tops if op.startswith(f"{t}.")), op) for op in operations)
    return modules_in_call_order(model, blocks, image)


def _is_block(module: nn.Module, classes: Container[str]) -> bool:
    return any(f"{base.__module__}:{base.__name__}" in classes for base in type(module).__mro__)


def modules_in_call_order(model: nn.Module, names: Iterable[str], image: Tensor) -> list[str]:
    """The modules ``names`` that a forward of ``image`` calls, in the order of their first calls."""
    order: dict[str, None] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: order.setdefault(name))
        for name in names
    ]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return list(order)


def lower_block(backend: Backend, model: nn.Module, name: str, plan: Plan) -> nn.Module:
    """A copy of the block ``name`` of the float ``model``, with the quantizers of ``plan`` for this block."""
    frame = nn.Module()
    put(frame, name, copy.deepcopy(model.get_submodule(name)))  # the backend finds modules by their paths in the model
    inside = {key: d for key, d in plan.decisions.items() if block_contains(name, d.site.module)}
    return backend.apply(frame, Plan(inside)).get_submodule(name)


def block_contains(block: str, module: str) -> bool:
    """Whether ``module`` is ``block`` itself or one of its submodules."""
    return module == block or module.startswith(f"{block}.")
