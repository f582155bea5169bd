"""Recording of a module's forward as a ``torch.fx`` graph, with its submodules as single nodes.

The forward runs on real tensors, so that control flow, optional arguments and Python code of any kind just run. Sizes
are integers that remember how they were computed: the graph computes them again, for batches and images of other sizes.
"""

from __future__ import annotations

import builtins
import inspect
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodDescriptorType, WrapperDescriptorType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

VALUES = frozenset(
    "item tolist numpy __bool__ __int__ __float__ __index__ __complex__ __contains__ is_nonzero equal allclose".split()
)
"""Functions that make Python values of a tensor's values."""
CONTEXTS = frozenset(("_enter_autocast", "_exit_autocast"))
"""Functions that only change how others compute in another precision; qplug computes in float32."""


class Unreadable(Exception):
    """The forward cannot be recorded; the message says why."""


def expect(value: Any, expected: Any) -> None:
    """Raise ``ValueError`` if a value on which the recorded forward depends is another one now."""
    if value != expected:
        raise ValueError(
            f"this module was read for inputs of another shape: a size that has to be {expected} is {value}; "
            "give inputs of the size that the model was quantized for"
        )


class Size(int):
    """A size of a tensor, or an integer computed from sizes, and the node that computes it.

    A result that is no integer, such as that of a comparison, is a constant of the graph, and ``expect`` checks it.
    """

    node: fx.Node
    recorder: Recorder

    def __new__(cls, value: int, node: fx.Node, recorder: Recorder) -> Size:
        """The integer ``value``, which ``node`` computes."""
        size = super().__new__(cls, value)
        size.node, size.recorder = node, recorder
        return size

    def _computed(self, function: Callable[..., Any], *operands: Any) -> Any:
        value = function(*map(_plain, operands))
        if self.recorder.quiet or not all(isinstance(operand, int) for operand in operands):
            return value
        return Size(value, self.recorder.graph.call_function(function, self.recorder.arg(operands)), self.recorder)

    def _fixed(self, function: Callable[..., Any], *operands: Any) -> Any:
        value = function(*map(_plain, operands))
        if not self.recorder.quiet and all(isinstance(operand, (int, float)) for operand in operands):
            node = self.recorder.graph.call_function(function, self.recorder.arg(operands))
            self.recorder.graph.call_function(expect, (node, value))
        return value

    __hash__ = int.__hash__


def _plain(value: Any) -> Any:
    return int.__int__(value) if isinstance(value, Size) else value


def _add_operators() -> None:
    def computed(function: Callable[..., Any]) -> Any:
        return lambda self, *others: self._computed(function, self, *others)

    def reflected(function: Callable[..., Any]) -> Any:
        return lambda self, other: self._computed(function, other, self)

    def fixed(function: Callable[..., Any]) -> Any:
        return lambda self, *others: self._fixed(function, self, *others)

    for name in ("add", "sub", "mul", "floordiv", "mod"):
        setattr(Size, f"__{name}__", computed(getattr(operator, name)))
        setattr(Size, f"__r{name}__", reflected(getattr(operator, name)))
    Size.__neg__ = computed(operator.neg)  # type: ignore[method-assign]  # as the others
    for name in ("eq", "ne", "lt", "le", "gt", "ge", "truediv", "pow"):
        setattr(Size, f"__{name}__", fixed(getattr(operator, name)))
    for name, function in (("bool", bool), ("float", float), ("int", int)):
        setattr(Size, f"__{name}__", fixed(function))
    for name in ("truediv", "pow"):
        reverse = getattr(operator, name)
        setattr(Size, f"__r{name}__", lambda self, other, f=reverse: self._fixed(f, other, self))


_add_operators()


@dataclass
class Recording:
    """A recorded forward.

    Attributes:
        graph: a placeholder for each tensor and integer of the arguments; ``meta["value"]`` of a node is its tensor.
        spec: how the arguments nest.
        constants: the leaves of the arguments that are no tensors and no integers, by index.
    """

    graph: fx.Graph
    spec: TreeSpec
    constants: dict[int, Any]


def flat_arguments(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Any], TreeSpec]:
    """The leaves of a call's arguments, defaults included, and how they nest."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return tree_flatten(dict(bound.arguments))


def is_input(leaf: Any) -> bool:
    """Whether a leaf of the arguments may change from call to call."""
    return isinstance(leaf, Tensor) or type(leaf) is int


def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recording:
    """Record ``module.forward(*args, **kwargs)``; other modules stay as they are, and ``module`` if it holds no state.

    Raises:
        Unreadable: the forward depends on values of tensors, or uses a tensor that is no part of the module.
    """
    signature = inspect.signature(module.forward)
    leaves, spec = flat_arguments(signature, args, kwargs)
    recorder = Recorder(module)
    given = [recorder.placeholder(f"x{index}", leaf) if is_input(leaf) else leaf for index, leaf in enumerate(leaves)]
    call = inspect.BoundArguments(signature, tree_unflatten(given, spec))
    handles = [
        handle
        for name, child in module.named_modules()
        if child is not module
        for handle in (
            child.register_forward_pre_hook(recorder.enter, with_kwargs=True, prepend=True),
            child.register_forward_hook(recorder.leave(name), with_kwargs=True),
        )
    ]
    try:
        with recorder, _lengths_as_sizes(), inlined():
            out = module.forward(*call.args, **call.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    recorder.graph.output(recorder.arg(out))
    constants = {index: leaf for index, leaf in enumerate(leaves) if not is_input(leaf)}
    return Recording(recorder.graph, spec, constants)


@contextmanager
def _lengths_as_sizes() -> Iterator[None]:
    """``len`` of a tensor is a ``Size``: Python makes a plain integer of what ``__len__`` returns."""
    plain = builtins.len
    builtins.len = lambda x: x.shape[0] if isinstance(x, Tensor) and x.dim() else plain(x)
    try:
        yield
    finally:
        builtins.len = plain


@contextmanager
def inlined() -> Iterator[None]:
    """Modes see the products within functions of torch that are written in Python, ``multi_head_attention_forward``.

    These functions hand themselves to a mode if ``has_torch_function`` says so, and to nothing else.
    """
    functional: Any = torch.nn.functional
    asked = functional.has_torch_function
    functional.has_torch_function = lambda _: False
    try:
        yield
    finally:
        functional.has_torch_function = asked


class Recorder(TorchFunctionMode):
    """Context that records the functions of torch as nodes of ``graph``, unless ``quiet`` is positive."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.graph, self.quiet = fx.Graph(), 0
        self._nodes: dict[int, tuple[Tensor, fx.Node]] = {}
        self._calls: list[Any] = []
        self._names = {id(tensor): name for name, tensor in _tensors(module)}
        self._device: tuple[torch.device, fx.Node] | None = None

    def placeholder(self, name: str, value: Any) -> Any:
        """An argument: a tensor as it is, or an integer as a ``Size``."""
        node = self.graph.placeholder(name)
        if isinstance(value, Tensor) and self._device is None:
            self._device = value.device, node
        return self._outputs(value, node)

    def arg(self, value: Any) -> Any:
        """A value as an argument of a node."""
        if isinstance(value, Tensor):
            return self._node(value)
        if isinstance(value, Size):
            return value.node
        if isinstance(value, (tuple, list)):
            return type(value)(map(self.arg, value)) if type(value) in (tuple, list) else tuple(map(self.arg, value))
        if isinstance(value, dict):
            return {key: self.arg(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(self.arg(value.start), self.arg(value.stop), self.arg(value.step))
        if isinstance(value, torch.device) and self._device is not None and value == self._device[0]:
            return self.graph.call_function(getattr, (self._device[1], "device"))  # the model may move to another one
        if value is None or isinstance(value, fx.node.base_types) or value is Ellipsis:
            return value
        raise Unreadable(f"it passes a {type(value).__name__} to an operation")

    def enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the forward of a submodule."""
        self._calls.append(None if self.quiet else (self.arg(args), self.arg(kwargs)))
        self.quiet += 1

    def leave(self, name: str) -> Any:
        """A hook for the end of the forward of the submodule ``name``."""

        def hook(_: nn.Module, __: Any, ___: Any, out: Any) -> Any:
            self.quiet -= 1
            call = self._calls.pop()
            if call is not None:
                self._outputs(out, self.graph.call_module(name, *call))

        return hook

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.quiet or name in CONTEXTS:
            return func(*args, **kwargs)
        if name in VALUES:
            raise Unreadable(f"it depends on values of a tensor ({name.strip('_')})")
        if name == "_set_grad_enabled":
            raise Unreadable("it switches gradients on or off")
        if name == "__iter__":
            return iter(self._outputs(args[0].unbind(0), self.graph.call_method("unbind", (self.arg(args[0]), 0))))
        operation = self._operation(func, name, args)
        mapped = self.arg(tuple(args)), self.arg(kwargs)  # first: an in-place function changes what is a node's value
        self.quiet += 1  # a function in Python computes with sizes, too
        try:
            out = func(*args, **kwargs)
        finally:
            self.quiet -= 1
        if name in ("dim", "ndimension") or not (
            _holds_tensors(out) or _is_size(name, func, out) or name == "__setitem__"
        ):
            return out
        return self._outputs(out, operation(*mapped))

    def _operation(self, func: Any, name: str, args: Any) -> Callable[[Any, Any], fx.Node]:
        """A function from arguments to the new node that computes ``func``."""
        if name == "__get__":
            attribute = func.__self__.__name__
            return lambda given, _: self.graph.call_function(getattr, (given[0], attribute))
        function = getattr(operator, name.strip("_"), None) if name.startswith("__") else None
        if function is not None and not name.startswith(("__r", "__i")):
            return lambda given, _: self.graph.call_function(function, given)
        if is_tensor_method_or_property(func) or isinstance(func, (MethodDescriptorType, WrapperDescriptorType)):
            return lambda given, more: self.graph.call_method(name, given, more)
        return lambda given, more: self.graph.call_function(func, given, more)

    def _outputs(self, out: Any, node: fx.Node) -> Any:
        """Note which node computed each tensor; integers become sizes."""
        if isinstance(out, Tensor):
            node.meta["value"] = out
            self._nodes[id(out)] = out, node  # a reference, so that the id stays unique
        elif isinstance(out, (tuple, list)):
            items = [
                self._outputs(item, self.graph.call_function(operator.getitem, (node, index)))
                for index, item in enumerate(out)
            ]
            return (
                torch.Size(items) if isinstance(out, torch.Size) else items if isinstance(out, list) else tuple(items)
            )
        elif isinstance(out, int) and not isinstance(out, bool):
            return Size(out, node, self)
        return out

    def _node(self, tensor: Tensor) -> fx.Node:
        if id(tensor) not in self._nodes:
            name = self._names.get(id(tensor))
            if name is None:
                raise Unreadable("it uses a tensor that is neither an argument nor a part of the module")
            self._outputs(tensor, self.graph.get_attr(name))
        return self._nodes[id(tensor)][1]


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters, buffers and other attributes that are tensors, of a module and its submodules."""
    found = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        found += [(prefix + name, value) for name, value in vars(part).items() if isinstance(value, Tensor)]
    return found


def _holds_tensors(out: Any) -> bool:
    return isinstance(out, Tensor) or (isinstance(out, (tuple, list)) and any(map(_holds_tensors, out)))


def _is_size(name: str, func: Any, out: Any) -> bool:
    if name == "__get__":
        return isinstance(out, torch.Size)
    return name in ("size", "numel", "nelement") and isinstance(out, (int, torch.Size))
