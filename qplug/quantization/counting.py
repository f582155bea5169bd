"""One forward of a model that counts MACs by module, and finds what no count knows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakTensorKeyDictionary

from qplug.core.errors import InputError
from qplug.models.tracing import no_grad_forward
from qplug.quantization.operators import aten, formulas, is_free, is_of_shapes, is_view

ROOT = "(model)"
"""Name of what belongs to no module but the model itself."""


@dataclass
class Count:
    """What one forward computes.

    Attributes:
        macs: innermost module → the MACs of one image that it computes itself.
        unknown: module → operators, or its weights, of which no formula counts the MACs.
        calls: module → its calls.
        reads: module → the operator that reads its weight while it is not called, and where.
    """

    macs: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    reads: dict[str, str] = field(default_factory=dict)


def count(model: nn.Module, image: Tensor) -> Count:
    """Count one forward of ``model`` in eval mode on ``image``, a batch of one.

    No module has a hook of its own meanwhile: torch takes other kernels where one has.

    Raises:
        InputError: an operator cannot be looked at, such as ``flex_attention``, which compiles itself.
    """
    with _Stack(model) as stack:
        no_grad_forward(model, image)
    operations = _Operations(model)
    counter = FlopCounterMode(display=False, depth=None, custom_mapping=formulas())  # type: ignore[arg-type]  # None is every depth
    try:
        with _frozen(model), operations.stack, _unfused(), operations, counter:
            no_grad_forward(model, image)
    except Exception as error:  # the forward above succeeded, so a part of it cannot run in a dispatch mode of torch
        raise InputError(
            f"the model's operators cannot be counted ({type(error).__name__}: {' '.join(str(error).split())[:300]})",
            where=operations.stack.innermost,
            fix="replace the operator, as flex_attention by scaled_dot_product_attention",
        ) from error
    macs = _by_module(model, counter)
    for name, more in operations.products.items():
        macs[name] = macs.get(name, 0) + more
    for name in _hidden(model, image, operations.read):
        operations.unknown[name].add("its weight")
    unknown = {name: ", ".join(sorted(found)) for name, found in operations.unknown.items()}
    return Count(macs, unknown, dict(stack.calls), dict(operations.reads))


def _by_module(model: nn.Module, counter: FlopCounterMode) -> dict[str, int]:
    """Innermost module → the MACs that it computes, of the counter's totals."""
    root = type(model).__name__
    totals = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    own = dict(totals)
    for name, macs in totals.items():
        parent = name.rpartition(".")[0]
        while parent and parent not in own:  # a list of modules has no forward
            parent = parent.rpartition(".")[0]
        if parent:
            own[parent] -= macs
    own.pop("Global", None)
    return {name.removeprefix(f"{root}.") if name != root else ROOT: macs for name, macs in own.items() if macs > 0}


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Without gradients of parameters: a view of one asks for them even here, which torch's counter does not expect."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _unfused() -> Iterator[None]:
    """Let ``nn.MultiheadAttention`` call operators that torch counts by module."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Stack:
    """Context that knows the modules being called, and counts their calls, by hooks that belong to no module."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {id(module): name or ROOT for name, module in model.named_modules()}
        self.calls: dict[str, int] = defaultdict(int)
        self.modules: list[nn.Module] = []

    def __enter__(self) -> _Stack:
        self._handles = [
            hooks.register_module_forward_pre_hook(self._push),
            hooks.register_module_forward_hook(self._pop, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _push(self, module: nn.Module, _: Any) -> None:
        self.modules.append(module)
        if id(module) in self.names:
            self.calls[self.names[id(module)]] += 1

    def _pop(self, module: nn.Module, _: Any, __: Any) -> None:
        while self.modules and self.modules.pop() is not module:
            pass

    @property
    def innermost(self) -> str:
        """Name of the innermost module of the model that is being called."""
        return next((self.names[id(one)] for one in reversed(self.modules) if id(one) in self.names), ROOT)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of torch
    """Looks at every operator: which ones no formula knows, which weights they read, and sums of products.

    Attributes:
        unknown: module → operators.
        products: module → MACs of elementwise products that are then summed along an axis of both operands.
        read: storages of parameters and buffers that an operator reads.
        reads: as in ``Count``.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stack = _Stack(model)
        self.unknown: dict[str, set[str]] = defaultdict(set)
        self.products: dict[str, int] = defaultdict(int)
        self.read: set[int] = set()
        self.reads: dict[str, str] = {}
        self._counted = formulas().keys() | FlopCounterMode(display=False).flop_registry.keys()
        self._factors: Any = WeakTensorKeyDictionary()  # tensor → the product that it is
        self._holders: dict[int, list[tuple[str, nn.Module]]] = defaultdict(list)
        self._matrices: set[int] = set()
        for name, module in model.named_modules():
            for leaf, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
                self._holders[_storage(tensor)].append((f"{name}.{leaf}".removeprefix("."), module))
                if _is_matrix(tensor):
                    self._matrices.add(_storage(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_iter((args, kwargs)) if isinstance(one, Tensor)]
        if any(one.is_floating_point() or one.is_complex() for one in tensors):
            self._look(func, args, tensors, out)
        return out

    def _look(self, func: Any, args: Any, tensors: list[Tensor], out: Any) -> None:
        if isinstance(func, HigherOrderOperator):
            if func not in self._counted:
                self.unknown[self.stack.innermost].add(str(func))
            return
        operator, name = func._overloadpacket, str(func._overloadpacket)
        if is_view(func):
            if args[0] in self._factors and isinstance(out, Tensor):  # the axes of a view are others
                self._factors[out] = replace(self._factors[args[0]], axes=None)
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
        elif operator in (aten.sum, aten.mean) and args[0] in self._factors:
            product, axes = self._factors[args[0]], args[1] if len(args) > 1 else None
            if product.is_contracted(axes, mean=operator is aten.mean):
                self.products[where] += product.elements
        elif operator not in self._counted and not is_free(func):
            self.unknown[where].add(name)

    def _note_reads(self, name: str, tensors: list[Tensor], where: str) -> None:
        for storage in {_storage(one) for one in tensors} & self._holders.keys():
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
    def of(cls, one: Tensor, two: Tensor, out: Tensor, matrices: set[int]) -> _Product:
        sizes = [_sizes(factor, out.dim()) for factor in (one, two)]
        larger = [any(size < whole for size, whole in zip(each, out.shape, strict=True)) for each in sizes]
        matrix = [_storage(factor) in matrices for factor in (one, two)]
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


def _hidden(model: nn.Module, image: Tensor, read: set[int]) -> list[str]:
    """Modules with matrices that no operator reads although the outputs depend on them: code outside torch computes."""
    unread: dict[str, list[Tensor]] = defaultdict(list)
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if _is_matrix(tensor) and _storage(tensor) not in read:
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
        outputs = [one for one in tree_iter(no_grad_forward(model, image)) if isinstance(one, Tensor)]
    except Exception:  # whatever the code makes of NaN, it read them
        return True
    finally:
        for tensor, value in zip(tensors, values, strict=True):
            tensor.data = value
    return any(bool(one.isnan().any()) for one in outputs)


def _is_matrix(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and sum(size > 1 for size in tensor.shape) > 1


def _sizes(factor: Tensor, dims: int) -> list[int]:
    """Sizes of a factor along the axes of the product; 1 where its values are repeated."""
    own = [size if stride else 1 for size, stride in zip(factor.shape, factor.stride(), strict=True)]
    return [1] * (dims - len(own)) + own


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
