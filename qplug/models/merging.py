"""Merging of branches that end in one sum, such as RepVGG's, by the function that timm's own block has for it."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from qplug.models.equivalence import LARGEST_CHANGE
from qplug.models.surgery import replace

METHODS = ("fuse", "reparameterize", "switch_to_deploy")
"""Methods of timm's blocks that merge their branches, in the order in which timm's ``reparameterize_model`` looks."""


@torch.no_grad()
def merge_branches(model: nn.Module, norms: Iterable[str], image: Tensor) -> list[str]:
    """Merge, in place, the branches of timm's blocks that hold these BatchNorms; returns the blocks' paths.

    A block stays as it is if its output on ``image`` would move by more than 1e-4 of its norm.
    """
    blocks = dict.fromkeys(block for block in (_block(model, norm) for norm in norms) if block)
    calls = _calls(model, list(blocks), image)
    merged = []
    for name in blocks:
        block = model.get_submodule(name)
        if name not in calls:
            continue
        args, expected = calls[name]
        try:
            made = _merged(block)
            error = float((made(*args) - expected).norm() / expected.norm().clamp_min(1e-12))
        except Exception:  # a block whose parts were rewritten; its BatchNorms are named as staying
            continue
        if error <= LARGEST_CHANGE:
            replace(model, block, made)
            merged.append(name)
    return merged


def _block(model: nn.Module, norm: str) -> str:
    """The outermost block of timm around ``norm`` that can merge its branches; empty if there is none."""
    parts = norm.split(".")
    paths = (".".join(parts[:count]) for count in range(1, len(parts)))
    return next((path for path in paths if _can_merge(model.get_submodule(path))), "")


def _can_merge(module: nn.Module) -> bool:
    return type(module).__module__.startswith("timm.") and any(hasattr(module, method) for method in METHODS)


def _merged(block: nn.Module) -> nn.Module:
    made: Any = copy.deepcopy(block)
    method = next(method for method in METHODS if hasattr(made, method))
    result = getattr(made, method)()
    made = result if isinstance(result, nn.Module) else made
    trained = any(parameter.requires_grad for parameter in block.parameters())
    device = next(block.parameters()).device
    result_module: nn.Module = made.eval().requires_grad_(trained).to(device)
    return result_module


def _calls(model: nn.Module, names: list[str], image: Tensor) -> dict[str, tuple[tuple[Any, ...], Tensor]]:
    """Block → its arguments, and its output, in a forward of ``image``; blocks with other outputs are left out."""
    calls: dict[str, tuple[tuple[Any, ...], Tensor]] = {}

    def hook(name: str) -> Any:
        def record(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if isinstance(out, Tensor):
                calls[name] = (tuple(x.clone() if isinstance(x, Tensor) else x for x in args), out.clone())

        return record

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        model(image)
    finally:
        for handle in handles:
            handle.remove()
    return calls
