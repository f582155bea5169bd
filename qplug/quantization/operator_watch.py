"""Every operator of a forward: which have no formula, which weights they read, and sums of products."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakTensorKeyDictionary

from qplug.quantization.module_stack import ModuleStack
from qplug.quantization.operators import aten, formulas, is_free, is_of_shapes, is_view

COPIES = (aten._unsafe_view, aten.clone, aten._to_copy)
"""Operators that return the values of their argument, and are no views."""


class OperatorWatch(TorchDispatchMode):
    """Looks at every operator: which ones no formula knows, which weights they read, and sums of products.

    Attributes:
        unknown: module → operators.
        products: module → MACs of elementwise products that are then summed along an axis of both operands.
        read: storages of parameters and buffers that an operator reads.
        reads: as in ``Count``.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.stack = ModuleStack(model)
        self.unknown: dict[str, set[str]] = defaultdict(set)
        self.products: dict[str, int] = defaultdict(int)
        self.read: set[int] = set()
        self.reads: dict[str, str] = {}
        self._counted = formulas().keys() | FlopCounterMode(display=False).flop_registry.keys()
        self._factors: Any = WeakTensorKeyDictionary()  # tensor → the product that it is
        self._holders: dict[int, list[tuple[str, nn.Module]]] = defaultdict(list)
        self._matrices: dict[int, int] = {}  # storage → elements
        self._parts: dict[tuple[str, int], set[int]] = defaultdict(set)  # module and matrix → factors within it
        for name, module in model.named_modules():
            for leaf, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
                self._holders[storage_of(tensor)].append((f"{name}.{leaf}".removeprefix("."), module))
                if is_matrix(tensor):
                    self._matrices[storage_of(tensor)] = tensor.numel()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_iter((args, kwargs)) if isinstance(one, Tensor)]
        if any(one.is_floating_point() or one.is_complex() or one.is_quantized for one in tensors):
            self._look(func, args, tensors, out)
        return out

    def _look(self, func: Any, args: Any, tensors: list[Tensor], out: Any) -> None:
        if isinstance(func, HigherOrderOperator):
            if func not in self._counted:
                self.unknown[self.stack.innermost].add(str(func))
            return
        operator, name = func._overloadpacket, str(func._overloadpacket)
        if is_view(func) or operator in COPIES:
            if args and args[0] in self._factors and isinstance(out, Tensor):  # the axes of a view are others
                self._factors[out] = replace(self._factors[args[0]], axes=None)
            if is_view(func):
                return
        where = self.stack.innermost
        if not is_of_shapes(func):
            self._note_reads(name, tensors, where)
        if (
            operator in (aten.mul, aten.mul_)
            and isinstance(args[1], Tensor)
            and len(tensors) == 2
            and tensors[0] is not tensors[1]
        ):
            self._factors[out] = _Product.of(tensors[0], tensors[1], out, self._matrices)
            self._note_parts(tensors, where)
        elif operator in (aten.sum, aten.mean) and args[0] in self._factors:
            product, axes = self._factors[args[0]], args[1] if len(args) > 1 else None
            if product.is_contracted(axes, mean=operator is aten.mean):
                self.products[where] += product.elements
        elif operator not in self._counted and not is_free(func):
            self.unknown[where].add(name)

    def _note_parts(self, factors: list[Tensor], where: str) -> None:
        """Products of a matrix, one row after another, are a product with the matrix, as in a loop over taps."""
        for factor in factors:
            storage = storage_of(factor)
            if 1 < factor.numel() < self._matrices.get(storage, 0):
                self._parts[where, storage].add(int(factor.storage_offset()))
                if len(self._parts[where, storage]) > 1:
                    self.unknown[where].add(f"aten.mul by parts of {self._holders[storage][0][0]}")

    def _note_reads(self, name: str, tensors: list[Tensor], where: str) -> None:
        for storage in ({storage_of(one) for one in tensors} & self._holders.keys()) - {0}:
            self.read.add(storage)
            holders = self._holders[storage]
            if not any(module is active for _, module in holders for active in self.stack.modules):
                self.reads.update(dict.fromkeys((parameter for parameter, _ in holders), f"{name} in {where}"))


@dataclass(frozen=True)
class _Product:
    """An elementwise product.

    Attributes:
        elements: of one image.
        axes: axes along which both factors vary; ``None`` for a view, whose axes are others.
        broadcast: whether the result is larger than both factors, or than one that a matrix of parameters multiplies.
    """

    elements: int
    axes: frozenset[int] | None
    broadcast: bool
    dims: int

    @classmethod
    def of(cls, one: Tensor, two: Tensor, out: Tensor, matrices: Container[int]) -> _Product:
        sizes = [_sizes(factor, out.dim()) for factor in (one, two)]
        larger = [any(size < whole for size, whole in zip(each, out.shape, strict=True)) for each in sizes]
        matrix = [storage_of(factor) in matrices for factor in (one, two)]
        both = frozenset(axis for axis, pair in enumerate(zip(*sizes, strict=True)) if min(pair) > 1)
        broadcast = all(larger) or (larger[0] and matrix[1]) or (larger[1] and matrix[0])
        return cls(out.numel(), both, broadcast, out.dim())

    def is_contracted(self, axes: Sequence[int] | int | None, mean: bool) -> bool:
        """Whether a sum or mean along ``axes`` makes it a product of matrices, not a sum of scaled values."""
        if self.axes is None:
            return self.broadcast
        each = [axes] if isinstance(axes, int) else axes or range(self.dims)
        summed = not self.axes.isdisjoint(axis % self.dims for axis in each)
        return summed and (self.broadcast or not mean)


def is_matrix(tensor: Tensor) -> bool:
    """Whether a tensor of floats has more than one axis longer than 1."""
    return tensor.is_floating_point() and sum(size > 1 for size in tensor.shape) > 1


def storage_of(tensor: Tensor) -> int:
    """The place of the values in memory, which views share; 0 where there is none, as of a sparse tensor."""
    try:
        return int(tensor.untyped_storage().data_ptr())
    except (NotImplementedError, RuntimeError):
        return 0


def _sizes(factor: Tensor, dims: int) -> list[int]:
    """Sizes of a factor along the axes of the product; 1 where its values are repeated."""
    own = [size if stride else 1 for size, stride in zip(factor.shape, factor.stride(), strict=True)]
    return [1] * (dims - len(own)) + own
