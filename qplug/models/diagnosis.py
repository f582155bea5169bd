"""Which module of a model is at fault: where a forward fails, differs, leaves float32 or gives NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qplug.core.errors import InputError

SAME, OTHER = 1e-5, 1e-4
"""Differences, as fractions of the norm: up to the first, inputs are the same; above the second, outputs are not."""
BATCH_SIZES = (2, 4, 8, 16, 32, 64, 128)
"""Batch sizes that are tried for a model that fails on one image."""

DTYPES = ("dtype", "scalar type", "should be the same", "same type")
"""Words of torch's errors for operands of different types."""


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module: its path, and the floating-point tensors that it got and gave."""

    path: str
    inputs: list[Tensor]
    outputs: list[Tensor]


def run_forward(model: nn.Module, x: Tensor, where: str) -> Any:
    """What ``model`` returns for ``x``; an error of its code becomes an ``InputError`` that names the module."""
    entered: list[str] = []
    with _hooks(model, lambda path: (_enter(path, entered), _leave(entered))):
        try:
            return model(x)
        except InputError:
            raise
        except Exception as error:  # the model's own code
            raise _failure(model, x, where, entered, error) from error


def calls_of(model: nn.Module, x: Tensor) -> list[ModuleCall]:
    """Every call of every module in a forward without gradients, in the order in which they end."""
    calls: list[ModuleCall] = []

    def watch(path: str) -> Any:
        waiting: list[list[Tensor]] = []

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            waiting.append([tensor.clone() for tensor in tensors((args, kwargs))])  # an in-place module changes it

        def after(_: nn.Module, __: Any, out: Any) -> None:
            calls.append(ModuleCall(path, waiting.pop(), [tensor.clone() for tensor in tensors(out)]))

        return before, after

    with torch.no_grad(), _hooks(model, watch):
        model(x)
    return calls


def first_difference(model: nn.Module, one: list[ModuleCall], other: list[ModuleCall]) -> str:
    """The first module that gives other outputs for the same inputs, in words.

    If a batch of one of the two is smaller, the rows that both have are compared.
    """
    changed = ""
    for mine, theirs in zip(one, other, strict=False):
        if mine.path != theirs.path:
            break
        if not _same(mine.inputs, theirs.inputs, SAME):
            changed = changed or mine.path
        elif not _same(mine.outputs, theirs.outputs, OTHER):
            return _between(model, mine.path, changed)
    return _between(model, "", changed)


def first_not_finite(model: nn.Module, calls: list[ModuleCall]) -> str:
    """The first module whose outputs are not finite although its inputs are, in words."""
    changed = ""
    for call in calls:
        if not all(map(_finite, call.inputs)):
            changed = changed or call.path
        elif not all(map(_finite, call.outputs)):
            return _between(model, call.path, changed)
    return _between(model, "", changed)


def _between(model: nn.Module, path: str, changed: str) -> str:
    """``act (GELU)``; for a module with children ``block (Block), before its head (Linear)``."""
    before = f", before {named(model, changed)}" if changed else ""
    return f"{named(model, path)}{before}"


def first_in_other_precision(model: nn.Module, x: Tensor) -> tuple[str, str] | None:
    """The first operation that gets or gives floats of another type than float32, and that type's name.

    An operation is a Softmax, or a module with parameters of its own and without children.
    """
    found: list[tuple[str, str]] = []

    def watch(path: str) -> Any:
        def after(_: nn.Module, args: Any, out: Any) -> None:
            others = (tensor.dtype for tensor in tensors((args, out)) if tensor.dtype != torch.float32)
            found.extend((path, str(dtype).removeprefix("torch.")) for dtype in others)

        return None, after

    with torch.no_grad(), _hooks(model, watch, is_operation):
        model(x)
    return found[0] if found else None


def is_operation(module: nn.Module) -> bool:
    """Whether a module is a Softmax, or has parameters and no children."""
    if isinstance(module, nn.Softmax):
        return True
    return next(module.children(), None) is None and next(module.parameters(recurse=False), None) is not None


def named(model: nn.Module, path: str) -> str:
    """``conv (Conv2d)``, or words for the model's own forward."""
    return f"{path} ({type(model.get_submodule(path)).__name__})" if path else "the model's own forward"


def tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in ``value``, within containers too."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


@contextmanager
def _hooks(
    model: nn.Module, watch: Callable[[str], Any], wanted: Callable[[nn.Module], bool] = lambda _: True
) -> Iterator[None]:
    """Within it, every wanted module has the hooks (before, after) that ``watch`` makes for its path."""
    handles: list[Any] = []
    try:
        for path, module in model.named_modules():
            if wanted(module) and not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                before, after = watch(path)
                if before is not None:
                    handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _enter(path: str, entered: list[str]) -> Any:
    return lambda *_: entered.append(path)


def _leave(entered: list[str]) -> Any:
    return lambda *_: (entered.pop(), None)[1]


def _failure(model: nn.Module, x: Tensor, where: str, entered: list[str], error: Exception) -> InputError:
    """The error for a forward that fails on ``x``."""
    place = named(model, entered[-1]) if entered else named(model, "")
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    size = _batch_size(model, x[:1])
    if size is not None and size != len(x):
        return InputError(
            f"a batch size is written into the model: it takes a batch of {size}, and fails on one of {len(x)} in "
            f"{place}: {reason}",
            where=where,
            fix="write the batch size as x.shape[0] in the model's forward",
        )
    shape = f"({', '.join(map(str, x.shape))}) {str(x.dtype).removeprefix('torch.')}"
    fix = "check model.preprocessing.input_size, and that the model runs on such a batch"
    if any(words in str(error) for words in DTYPES):
        fix = "qplug computes in float32, the weights too: remove conversions such as .half() and .double()"
    return InputError(f"the model fails on a batch {shape}, in {place}: {reason}", where=where, fix=fix)


def _batch_size(model: nn.Module, image: Tensor) -> int | None:
    """The smallest batch size with which the model gives a row for each image; ``None`` if none is found."""
    for size in (1, *BATCH_SIZES):
        try:
            with torch.no_grad():
                out = next(tensors(model(torch.cat([image] * size))), None)
        except Exception:  # the model's own code
            continue
        if out is not None and out.dim() and len(out) == size:
            return size
    return None


def _same(one: list[Tensor], other: list[Tensor], limit: float) -> bool:
    """Whether the tensors differ by at most ``limit`` of their norm, in the rows that both have."""
    return len(one) == len(other) and all(_close(*_common(a, b), limit) for a, b in zip(one, other, strict=True))


def _common(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    if one.dim() == 0 or one.shape == other.shape or one.shape[1:] != other.shape[1:]:
        return one, other
    rows = min(len(one), len(other))
    return one[:rows], other[:rows]


def _close(one: Tensor, other: Tensor, limit: float) -> bool:
    if one.shape != other.shape:
        return False
    if torch.equal(one, other):
        return True
    difference, size = float((one - other).float().norm()), float(one.float().norm())
    return difference <= limit * size


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
