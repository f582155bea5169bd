"""Parameters that code outside torch reads: whether the outputs are NaN if the parameters are."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._pytree import tree_iter

from qplug.models.tracing import no_grad_forward
from qplug.quantization.module_stack import ROOT
from qplug.quantization.operator_watch import is_matrix, storage_of


def unseen_matrices(model: nn.Module, image: Tensor, read: set[int]) -> list[str]:
    """Modules with matrices that no operator reads although the outputs depend on them: code outside torch computes."""
    unread: dict[str, list[Tensor]] = defaultdict(list)
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if is_matrix(tensor) and storage_of(tensor) not in read:
            unread[name.rpartition(".")[0] or ROOT].append(tensor)
    if not unread or not _depend(model, image, [tensor for tensors in unread.values() for tensor in tensors]):
        return []
    return [name for name, tensors in unread.items() if _depend(model, image, tensors)]


def _depend(model: nn.Module, image: Tensor, tensors: list[Tensor]) -> bool:
    """Whether the outputs are NaN if these tensors are."""
    values = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = torch.full_like(tensor, float("nan"))
        return _has_nan(no_grad_forward(model, image))
    except Exception:  # whatever the code makes of NaN, it read them
        return True
    finally:
        for tensor, value in zip(tensors, values, strict=True):
            tensor.data = value


def read_elsewhere(model: nn.Module, image: Tensor, known: Iterable[str]) -> list[str]:
    """Weights of linears and convolutions on which the outputs depend beside the calls of these layers.

    The second of two forwards has NaN for the weights, and for each call of a layer the output of the first.

    Args:
        model: in eval mode.
        image: a batch of one.
        known: weights that need no test.
    """
    shared = Counter(storage_of(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    layers = {
        f"{name}.weight".removeprefix("."): module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and isinstance(module._parameters.get("weight"), nn.Parameter)
    }
    layers = {n: m for n, m in layers.items() if shared[storage_of(m.weight)] == 1 and n not in set(known)}
    replay = _Replay(layers.values())
    with replay:
        outputs = no_grad_forward(model, image)
    if not layers or _has_nan(outputs):
        return []

    def depends(names: Sequence[str]) -> bool:
        with replay:
            return _depend(model, image, [layers[name].weight for name in names])

    return [name for name in layers if depends([name])] if depends(list(layers)) else []


class _Replay:
    """Context that records the outputs of layers at its first use, and gives them in their place at every other."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self._outputs: dict[int, list[Any]] = {id(layer): [] for layer in layers}
        self._left: dict[int, list[Any]] | None = None

    def __enter__(self) -> None:
        self._handle = hooks.register_module_forward_hook(self._swap)

    def __exit__(self, *_: object) -> None:
        self._handle.remove()
        self._left = {layer: list(outputs) for layer, outputs in self._outputs.items()}

    def _swap(self, layer: nn.Module, _: Any, out: Any) -> Any:
        if id(layer) not in self._outputs or not isinstance(out, Tensor):
            return None
        if self._left is None:
            self._outputs[id(layer)].append(out.clone())
            return None
        return self._left[id(layer)].pop(0).clone() if self._left[id(layer)] else out


def _has_nan(outputs: Any) -> bool:
    return any(isinstance(one, Tensor) and bool(one.isnan().any()) for one in tree_iter(outputs))
