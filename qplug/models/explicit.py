"""Any module that multiplies activations in its own forward, with these products as modules."""

from __future__ import annotations

import importlib
import inspect
import linecache
from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import TreeSpec, tree_flatten

from qplug.core.storage.hashing import sha256
from qplug.core.text import listed
from qplug.models.nodes import called
from qplug.models.products import FUSED, ExplicitGraph
from qplug.models.recording import Recording, Unreadable, flat_arguments, is_input, record

LARGEST_ERROR = 1e-5
"""Largest change of a module's output, as a fraction of the output's norm."""

Call = tuple[tuple[Any, ...], dict[str, Any], Any]
"""Positional and keyword arguments of a call, and its result."""


class Compiled:
    """A recorded forward as a function. Copies of a module share it."""

    def __init__(
        self,
        source: str,
        names: dict[str, Any],
        signature: inspect.Signature,
        spec: TreeSpec,
        constants: dict[int, Any],
        owner: str,
    ) -> None:
        """The function of ``source``, with ``names`` that it uses; a module among them is given by its name."""
        self._state = source, names, signature, spec, constants, owner
        self.code, self.signature, self.spec, self.constants, self.owner = source, signature, spec, constants, owner
        file = f"<forward of {owner}, {sha256(source.encode())[:8]}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # for tracebacks
        place: dict[str, Any] = {
            name: importlib.import_module(x) if isinstance(x, str) else x for name, x in names.items()
        }
        exec(compile(source, file, "exec"), place)  # the code that torch.fx generated
        self.function: Callable[..., Any] = place["forward"]

    @classmethod
    def of(cls, recording: Recording, signature: inspect.Signature, owner: str) -> Compiled:
        """The graph of ``recording``, of a module of the class ``owner``."""
        made = recording.graph.python_code("self")
        names = {name: x.__name__ if inspect.ismodule(x) else x for name, x in made.globals.items()}  # for pickle
        return cls(made.src.strip(), names, signature, recording.spec, recording.constants, owner)

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Compiled, self._state

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The forward of ``module``.

        Raises:
            ValueError: the arguments nest otherwise than those of the recorded call, or another option is given.
        """
        leaves, spec = flat_arguments(self.signature, args, kwargs)
        if spec != self.spec or any(is_input(leaf) == (i in self.constants) for i, leaf in enumerate(leaves)):
            raise ValueError(
                f"{self.owner} was read with other arguments: a tensor is given that was not, or the reverse"
            )
        for index, expected in self.constants.items():
            if leaves[index] is not expected and leaves[index] != expected:
                raise ValueError(
                    f"{self.owner} was read with the argument {expected!r}, and receives {leaves[index]!r}"
                )
        return self.function(module, *(leaf for index, leaf in enumerate(leaves) if index not in self.constants))


class ExplicitForward(nn.Module):
    """A mixin whose forward is a recorded one; everything else is the original class's."""

    _compiled: Compiled

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the original's."""
        return self._compiled(self, args, kwargs)

    def extra_repr(self) -> str:
        """The digest of the forward's code: keys of cached results hold what ``repr`` returns."""
        return ", ".join(filter(None, (super().extra_repr(), f"forward={sha256(self._compiled.code.encode())[:16]}")))

    def __reduce__(self) -> tuple[Any, ...]:
        return _without_state, (type(self).__mro__[2],), dict(vars(self))


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _explicit_class(original: type[nn.Module]) -> type[nn.Module]:
    """The class of modules that compute what those of ``original`` do; one, so that copies have the same."""
    if original not in _CLASSES:
        name, bases = f"Explicit{original.__name__}", (ExplicitForward, original)
        _CLASSES[original] = type(name, bases, {"__module__": __name__})
    return _CLASSES[original]


def _without_state(original: type[nn.Module]) -> nn.Module:
    made: nn.Module = object.__new__(_explicit_class(original))
    return made


def clone(module: nn.Module, kind: type[nn.Module] | None = None) -> Any:
    """A module with the same parts and attributes; tensors that the module remembers in dicts are left out."""
    made = object.__new__(kind or type(module))
    state = dict(vars(module))
    for name, value in state.items():
        if isinstance(value, dict):
            remembers = not name.startswith("_") and any(isinstance(item, Tensor) for item in value.values())
            state[name] = {} if remembers else value.copy()
    vars(made).update(state)
    return made


def explicit(module: nn.Module, ones: list[Call], threes: list[Call]) -> tuple[nn.Module, list[str]]:
    """A module that computes what ``module`` does, with its products, Softmax and functional layers as modules.

    The second result says what stays as it was, and why.

    Args:
        module: in eval mode; it stays as it is.
        ones: its calls in a forward of one image.
        threes: its calls in a forward of three images, of which that is the first.

    Raises:
        Unreadable: it cannot be recorded, holds nothing to be made explicit, or would compute something else.
    """
    signature = inspect.signature(module.forward)
    one, three = (_record(module, calls[0]) for calls in (ones, threes))
    _pair(one.graph, three.graph)
    if any(called(node) in (FUSED, "dropout") for node in one.graph.nodes):
        _note_dropout(one.graph, module, ones[0])
    rewritten = ExplicitGraph(module, one.graph)
    rewritten.make()
    if not rewritten.modules:
        raise Unreadable("; ".join(dict.fromkeys(rewritten.left)) or "it holds no product of two activations")
    made = clone(module, _explicit_class(type(module)))
    vars(made).pop("forward", None)  # one that was set on the instance would go before that of the class
    for name in rewritten.moved:
        del made._parameters[name]
    for name, new in rewritten.modules.items():
        made.add_module(name, new.eval())
    made._compiled = Compiled.of(one, signature, type(module).__name__)
    for args, kwargs, expected in (*ones, *threes):
        _check(made, args, kwargs, expected)
    return made, rewritten.left


def _note_dropout(graph: fx.Graph, module: nn.Module, call: Call) -> None:
    """Give functional dropout the arguments that it has in training, unless training runs other operations.

    Only the module's own flag is switched: its submodules stay in eval mode.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            trained = _record(module, call, training=True).graph
        except Unreadable:
            return
    pairs = list(zip_longest(graph.nodes, trained.nodes))
    if any(a is None or b is None or (a.op, a.target) != (b.op, b.target) for a, b in pairs):
        return
    differing = [(a, b) for a, b in pairs if _line(a) != _line(b)]
    if all(called(node) in (FUSED, "dropout") for node, _ in differing):
        nodes = {other: node for node, other in pairs}
        for node, other in differing:
            node.args = fx.node.map_arg(other.args, lambda n: nodes[n])
            node.kwargs = fx.node.map_arg(other.kwargs, lambda n: nodes[n])


def _record(module: nn.Module, call: Call, training: bool = False) -> Recording:
    copied = clone(module)
    copied.training = training
    before = dict(vars(copied))
    args, kwargs, _ = call
    try:
        recording = record(copied, args, kwargs)
    except Unreadable:
        raise
    except Exception as error:  # any forward may be given, and may fail in any way on what records it
        raise Unreadable(f"it cannot be recorded: {type(error).__name__}: {error}") from error
    changed = [name for name, value in vars(copied).items() if before.get(name) is not value]
    if changed:
        raise Unreadable(f"its forward sets {', '.join(changed)}")
    return recording


def _pair(one: fx.Graph, three: fx.Graph) -> None:
    """Note both values of each node in ``meta["values"]`` of the first graph."""
    for node, other in zip_longest(one.nodes, three.nodes):
        if node is None or other is None or _line(node) != _line(other):
            lines = " or ".join(_line(each) if each is not None else "nothing" for each in (node, other))
            raise Unreadable(f"it depends on the number of images: {lines}")
        if "value" in node.meta:
            node.meta["values"] = node.meta["value"], other.meta["value"]


def _line(node: fx.Node) -> str:
    return f"{node.name} = {getattr(node.target, '__name__', node.target)}(*{node.args}, **{node.kwargs})"


def _check(made: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], expected: Any) -> None:
    try:
        out = made(*_copies(args), **_copies(kwargs))
    except Exception as error:
        raise Unreadable(f"its graph fails: {type(error).__name__}: {error}") from error
    (values, nesting), (all_wanted, wanted_nesting) = tree_flatten(out), tree_flatten(expected)
    if nesting != wanted_nesting:
        raise Unreadable(f"it returns a {type(expected).__name__}, which its graph cannot make")
    for value, wanted in zip(values, all_wanted, strict=True):
        if isinstance(wanted, Tensor) and wanted.is_floating_point():
            value, wanted = (torch.nan_to_num(x, nan=1.0) for x in (value, wanted))  # of weights that are loaded later
            change = float((value - wanted).norm() / wanted.norm().clamp_min(1e-12))
            if not change <= LARGEST_ERROR:
                raise Unreadable(f"its graph changes the output by {change:.1e} of its norm")


def _copies(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) in (tuple, list):
        return type(value)(map(_copies, value))
    return {key: _copies(item) for key, item in value.items()} if type(value) is dict else value


def unread_notes(reasons: Mapping[str, str]) -> list[str]:
    """A sentence for each reason why products stay in float, with the modules that it holds for."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    return [f"products of {listed(names)} stay in float: {reason}" for reason, names in by_reason.items()]


def make_products_explicit(model: nn.Module, names: Iterable[str], image: Tensor) -> tuple[list[str], dict[str, str]]:
    """Make the products of the modules ``names`` explicit, in place: each keeps its identity, and gets another class.

    Args:
        model: in eval mode.
        names: paths of its modules; the empty one is the model itself.
        image: a batch of one.

    Returns:
        The paths of the modules that were changed; and path → reason where products stay as they are. The path of the
        model itself is ``(model)`` there, as among the MACs in float.
    """
    modules = {name: model.get_submodule(name) for name in names}
    changed: list[str] = []
    try:
        ones, threes = (_calls(model, modules, images) for images in (image, _three(image)))
    except Exception as error:  # the model may take one image alone
        return [], dict.fromkeys(
            map(_name, modules), f"the model fails on three images: {type(error).__name__}: {error}"
        )
    left: dict[str, str] = {}
    for name, module in modules.items():
        try:
            if len(ones[name]) != len(threes[name]):
                raise Unreadable("it is called more often for three images than for one")
            with torch.inference_mode():
                made, rest = explicit(module, ones[name], threes[name])
        except Unreadable as reason:
            left[_name(name)] = str(reason)
            continue
        except Exception as error:  # whatever a graph of any module may hold; the module is as it was
            left[_name(name)] = f"its graph cannot be made explicit: {type(error).__name__}: {error}"
            continue
        module.__class__ = type(made)
        vars(module).clear()
        vars(module).update(vars(made))
        changed.append(name)
        if rest:
            left[_name(name)] = "; ".join(dict.fromkeys(rest))
    return changed, left


def _name(path: str) -> str:
    return path or "(model)"


def _three(image: Tensor) -> Tensor:
    others = (image.flip(-1), image * 0.5) if image.is_floating_point() else (image, image)
    return torch.cat([image, *others])


def _calls(model: nn.Module, modules: dict[str, nn.Module], images: Tensor) -> dict[str, list[Call]]:
    """Every call of the modules in one forward."""
    calls: dict[str, list[Call]] = {name: [] for name in modules}

    def hook(name: str) -> Any:
        def record_call(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            given = begun[name].pop()
            calls[name].append((*given, _copies(out)))

        return record_call

    begun: dict[str, list[Any]] = {name: [] for name in modules}

    def begin(name: str) -> Any:
        return lambda _, args, kwargs: begun[name].append((_copies(args), _copies(kwargs)))

    handles = [module.register_forward_pre_hook(begin(name), with_kwargs=True) for name, module in modules.items()]
    handles += [module.register_forward_hook(hook(name), with_kwargs=True) for name, module in modules.items()]
    try:
        with torch.inference_mode():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return calls
