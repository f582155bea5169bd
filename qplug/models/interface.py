"""The interface of a float model: one tensor in, one tensor out; hooks that give it to models that differ from that."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qplug.core.errors import InputError
from qplug.core.text import listed
from qplug.models.diagnosis import first_in_other_precision, named, run_forward

if TYPE_CHECKING:
    from qplug.core.task import Task

VOWELS = "AEIOUaeiou"


@dataclass(frozen=True)
class PositionalInput:
    """Forward pre-hook of a module: its first argument by position, which the model gives by keyword.

    Everything that watches or replaces operations reads arguments by position. ``surgery.replace`` moves this hook to
    the module that replaces its own.

    Attributes:
        name: the first parameter of the module's forward.
    """

    name: str

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Arguments with the keyword ``name`` moved to the first position."""
        if args or self.name not in kwargs:
            return None
        return (kwargs[self.name],), {key: value for key, value in kwargs.items() if key != self.name}


@dataclass(frozen=True)
class KeywordInput:
    """Forward pre-hook of a model that takes its input by the keyword ``name`` only."""

    name: str

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Arguments with the only positional one under ``name``."""
        return ((), {**kwargs, self.name: args[0]}) if len(args) == 1 else None


@dataclass(frozen=True)
class InputOfNames:
    """Forward pre-hook of a model that takes its inputs by keywords: one tensor, or several that are stacked.

    Attributes:
        names: of the inputs; those of several lie along the second axis of the tensor, (B, inputs, …).
    """

    names: tuple[str, ...]

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Arguments with the only positional one under its name, or its parts under theirs."""
        if len(args) != 1:
            return None
        parts = args if len(self.names) == 1 else args[0].unbind(1)
        return (), {**kwargs, **dict(zip(self.names, parts, strict=True))}


def all_outputs(_: nn.Module, __: Any, out: Any) -> Tensor:
    """Forward hook of a model: (B, N), every floating-point tensor that it returns, flattened and joined."""
    return torch.cat([tensor.flatten(1).float() for tensor in floating_tensors(out)], 1)


def floating_tensors(out: Any) -> list[Tensor]:
    """The floating-point tensors (B, …) within containers, in their order."""
    if isinstance(out, Tensor):
        return [out] if out.is_floating_point() and out.dim() else []
    return [tensor for value in _entries(out).values() for tensor in floating_tensors(value)]


def remove_interface(model: nn.Module) -> nn.Module:
    """``model``, in place, with the arguments and outputs of the caller's own model again."""
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(hook, (KeywordInput, InputOfNames, SelectedOutput, ReadOutput)) or hook is all_outputs:
                del hooks[key]
                for more in ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs"):
                    getattr(model, more).pop(key, None)
    return model


@dataclass(frozen=True)
class SelectedOutput:
    """Forward hook of a model: the one tensor of its outputs.

    Attributes:
        key: of the tensor in a dict, a tuple or a dataclass; ``None`` if the model returns the tensor itself.
        flat: whether trailing axes of size 1 are removed: (B, classes, 1, 1) → (B, classes).
        note: a sentence for the reader of the results.
    """

    key: str | int | None
    flat: bool
    note: str

    def __call__(self, _: nn.Module, __: Any, out: Any) -> Tensor:
        """The tensor (B, …)."""
        tensor: Tensor = out if self.key is None else _entries(out)[self.key]
        return tensor.flatten(1) if self.flat else tensor


@dataclass(frozen=True)
class ReadOutput:
    """Forward hook of a model: the one tensor that its task reads from its outputs.

    Attributes:
        task: whose ``read`` knows such outputs.
        note: empty; the task's own documentation describes what is read.
    """

    task: Task
    note: str = ""

    def __call__(self, _: nn.Module, __: Any, out: Any) -> Tensor:
        """The tensor (B, …)."""
        tensor = self.task.read(out)
        assert tensor is not None  # it was read when the hook was made
        return tensor


def settle_interface(model: nn.Module, example: Tensor, task: Task, where: str) -> list[str]:
    """Give ``model`` the interface that every stage expects, by hooks in place; returns notes on what they do.

    Two forwards find what is needed. Hooks change no name and no value. ``copy.deepcopy`` and exports keep them.

    Args:
        model: in eval mode.
        example: a batch of one, on the model's device.
        task: says which outputs are expected.
        where: name of the model, for errors.

    Raises:
        InputError: the forward fails, an operation computes in another type than float32, or the outputs cannot be read
            as outputs of ``task``.
    """
    if not any(isinstance(hook, (KeywordInput, InputOfNames)) for hook in model._forward_pre_hooks.values()):
        _take_by_keyword(model, where)
    by_keyword: dict[str, str] = {}
    handles = [
        module.register_forward_pre_hook(_find_keyword(name, by_keyword), with_kwargs=True, prepend=True)
        for name, module in model.named_modules()
        if name and not isinstance(module, torch.jit.ScriptModule)  # takes no hook, and its parts are called inside
    ]
    try:
        with torch.no_grad():
            out = run_forward(model, example, where)
    finally:
        for handle in handles:
            handle.remove()
    for path, name in by_keyword.items():
        model.get_submodule(path).register_forward_pre_hook(PositionalInput(name), with_kwargs=True, prepend=True)
    _check_precision(model, example, where)
    read = None if isinstance(out, Tensor) else task.read(out)
    if read is not None:
        model.register_forward_hook(ReadOutput(task))
        out = read
    selected = _select(out, len(example), task, where)
    if selected is not None:
        model.register_forward_hook(selected)
    return [hook.note for hook in model._forward_hooks.values() if isinstance(hook, SelectedOutput)]


def accepted(out: Any, batch: int, task: Task) -> bool:
    """Whether outputs for ``batch`` examples can be read as those of ``task``."""
    try:
        _select(out, batch, task, "")
    except InputError:
        return False
    return True


def described(out: Any) -> str:
    """Outputs in words: ``a tuple of 2: (1, 4), (1, 4)``."""
    return _described(out)


def has_own_hooks(module: nn.Module) -> bool:
    """Whether ``module`` has forward hooks other than ``PositionalInput``, which changes no value."""
    return bool(module._forward_hooks) or not all(
        isinstance(hook, PositionalInput) for hook in module._forward_pre_hooks.values()
    )


def positional_again(old: nn.Module, new: nn.Module) -> None:
    """Move the hook ``PositionalInput`` of ``old`` to the module ``new`` that takes its place."""
    for hook in old._forward_pre_hooks.values():
        if isinstance(hook, PositionalInput):
            new.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)


def _check_precision(model: nn.Module, example: Tensor, where: str) -> None:
    other = first_in_other_precision(model, example)
    if other is not None:
        path, dtype = other
        raise InputError(
            f"{named(model, path)} computes in {dtype}; expected is float32 everywhere",
            where=where,
            fix="remove torch.autocast, .half(), .bfloat16() and .double() from the model's forward",
        )


def _take_by_keyword(model: nn.Module, where: str) -> None:
    """Refuse a forward that takes more than one input; hook one that takes its only input by keyword."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # a compiled forward has no signature
        return
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    if len(needed) > 1:
        raise InputError(
            f"the model's forward needs {len(needed)} inputs: {listed(needed, 6)}; expected is one batch of images",
            where=where,
            fix="wrap it: a module whose forward(x) calls the model with x and with the other inputs",
        )
    if positional or not keywords:
        return
    name = needed[0] if needed else keywords[0]
    model.register_forward_pre_hook(KeywordInput(name), with_kwargs=True, prepend=True)


def _find_keyword(path: str, found: dict[str, str]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not args and kwargs:
            try:
                first = next(iter(inspect.signature(module.forward).parameters), "")
            except (TypeError, ValueError):
                return
            if first in kwargs:
                found[path] = first

    return hook


def _select(out: Any, batch: int, task: Task, where: str) -> SelectedOutput | None:
    """The hook that finds the one tensor of ``out``; ``None`` if ``out`` is that tensor."""
    key: str | int | None = None
    tensor = out
    if not isinstance(out, Tensor):
        key = _key(out, task)
        if key is None:
            raise _refusal(out, task, where)
        tensor = _entries(out)[key]
    if tensor.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"the model returns {_described(out)} of {str(tensor.dtype).removeprefix('torch.')}; expected are scores "
            f"in float32, {task.outputs}",
            where=where,
            fix="let the model return its scores in float32, before any argmax",
        )
    flat = tensor.dim() > 2 and tensor[0, :1].numel() == 1 and task.accepts(tensor.flatten(1))
    if not task.accepts(tensor.flatten(1) if flat else tensor):
        raise _refusal(out, task, where)
    if len(tensor) != batch:
        raise InputError(
            f"the model returns {_described(tensor)} for a batch of {batch}: a batch size seems to be written into it",
            where=where,
            fix="write the batch size as x.shape[0] in the model's forward",
        )
    if key is None and not flat:
        return None
    read = f"{_described(out)}, of which {key!r} is read" if key is not None else f"{_described(out)}"
    shaped = f"; its axes of size 1 are removed: {_shape(tensor.flatten(1))}" if flat else ""
    return SelectedOutput(key, flat, f"the model returns {read}{shaped}")


def _key(out: Any, task: Task) -> str | int | None:
    """The entry that holds the outputs: one of ``task.named``, or the only tensor; ``None`` if no entry is clear."""
    entries = _entries(out)
    tensors = [key for key, value in entries.items() if isinstance(value, Tensor)]
    named = next((name for name in task.named if name in tensors), None)
    if named is not None or len(tensors) != 1:
        return named
    others = [value for key, value in entries.items() if key not in tensors and value is not None]
    return tensors[0] if not others else None


def _entries(out: Any) -> dict[Any, Any]:
    """What a container holds, by key, field or position; empty for any other object."""
    if isinstance(out, Mapping):
        return dict(out)
    if isinstance(out, tuple) and hasattr(out, "_asdict"):
        return dict(out._asdict())
    if isinstance(out, (tuple, list)):
        return dict(enumerate(out))
    if dataclasses.is_dataclass(out) and not isinstance(out, type):
        return {field.name: getattr(out, field.name) for field in dataclasses.fields(out)}
    return {}


def _refusal(out: Any, task: Task, where: str) -> InputError:
    """The error for outputs that the task cannot take; it shows what to write around the model."""
    entries = _entries(out)
    key = next((key for key, value in entries.items() if isinstance(value, Tensor) and task.accepts(value)), None)
    if key is not None:
        fix = f"wrap it: a module whose forward(x) returns model(x)[{key!r}]"
        if hasattr(out, "_fields") or not isinstance(out, (Mapping, tuple, list)):
            fix = f"wrap it: a module whose forward(x) returns model(x).{key}"
    elif isinstance(out, Tensor) and out.dim() < 2:
        fix = f"return {task.outputs} for one image too: x.flatten(1) keeps the batch axis, and x.squeeze() does not"
    else:
        fix = f"wrap it: a module whose forward(x) returns {task.outputs}; the task is {task.name}"
    return InputError(f"the model returns {_described(out)}; expected is a tensor {task.outputs}", where=where, fix=fix)


def _described(value: Any) -> str:
    """``a tensor (1, 4, 8, 8)``, ``a dict with out (1, 4)``, ``a tuple of 2: (1, 4), (1, 4)``."""
    if isinstance(value, Tensor):
        return f"a tensor {_shape(value)}"
    entries, kind = _entries(value), type(value).__name__
    if not entries:
        plain = "None" if value is None else f"a value of type {kind}"
        return f"an empty {kind}" if isinstance(value, (Mapping, tuple, list)) else plain
    held = [_shape(one) if isinstance(one, Tensor) else type(one).__name__ for one in entries.values()]
    if all(isinstance(key, int) for key in entries):
        return f"a {kind} of {len(held)}: {listed(held, 4)}"
    each = listed((f"{key} {one}" for key, one in zip(entries, held, strict=True)), 4)
    return f"{'an' if kind[0] in VOWELS else 'a'} {kind} with {each}"


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"
