"""What is reconstructed as a whole: residual and transformer blocks, and operations outside of all of them."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable

import torch
from torch import Tensor, nn

from qplug.models.surgery import put
from qplug.quantization.backends.base import Backend
from qplug.quantization.plan import Plan


def find_blocks(model: nn.Module, operations: Iterable[str], image: Tensor, classes: Container[str]) -> list[str]:
    """Paths of the blocks that hold ``operations``, in the order in which a forward of ``image`` enters them.

    An operation outside of all of them is a block by itself. A block within a block belongs to it.

    Args:
        model: the float model.
        operations: paths of modules.
        image: (1, C, H, W) float32.
        classes: ``module:Class`` of what is one block, as ``qplug_blocks`` declares it; what derives from it is too.
    """
    tops = [name for name, module in model.named_modules() if name and _is_block(module, classes)]
    tops = [name for name in tops if not any(name.startswith(f"{top}.") for top in tops)]
    blocks = dict.fromkeys(next((t for t in tops if op.startswith(f"{t}.")), op) for op in operations)
    return called(model, blocks, image)


def _is_block(module: nn.Module, classes: Container[str]) -> bool:
    return any(f"{base.__module__}:{base.__name__}" in classes for base in type(module).__mro__)


def called(model: nn.Module, names: Iterable[str], image: Tensor) -> list[str]:
    """``names`` of modules in the order in which a forward of ``image`` first calls them, without uncalled ones."""
    seen: dict[str, None] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: seen.setdefault(name))
        for name in names
    ]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return list(seen)


def lower_block(backend: Backend, model: nn.Module, name: str, plan: Plan) -> nn.Module:
    """A copy of the block ``name`` of the float ``model`` with the quantizers that ``plan`` has there."""
    frame = nn.Module()
    put(frame, name, copy.deepcopy(model.get_submodule(name)))  # the backend finds modules by their paths in the model
    inside = {key: d for key, d in plan.decisions.items() if within(name, d.site.module)}
    return backend.apply(frame, Plan(inside)).get_submodule(name)


def within(block: str, module: str) -> bool:
    """Whether ``module`` is ``block`` or a part of it."""
    return module == block or module.startswith(f"{block}.")
