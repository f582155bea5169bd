"""The axis of the batch in the inputs of each operation, found by forwards of one and of two examples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qplug.models.attention import MatMul
from qplug.models.tracing import no_grad_forward


class Axes(NamedTuple):
    """The tensors that one call of an operation gets: both operands of a matmul, the first argument of any other.

    Attributes:
        axes: the axis of the batch in each of them, 0 as a rule. It may hold several entries of each example, as Swin's
            windows. ``None`` is a constant: it has no such axis and is the same for every example.
        problem: the reason why the examples cannot be told apart; empty as a rule.
    """

    axes: tuple[int | None, ...] = ()
    problem: str = ""

    def of(self, operand: int) -> int | None:
        """The axis of the batch in one tensor; 0 where nothing is known."""
        return self.axes[operand] if operand < len(self.axes) else 0

    @property
    def constant(self) -> bool:
        """Whether the operation computes the same for every example."""
        return bool(self.axes) and not self.problem and all(axis is None for axis in self.axes)


FIRST = Axes()
"""The batch is on the first axis."""


class BatchAxes(dict[str, list[Axes]]):
    """Operation → the ``Axes`` of each of its calls in a forward."""

    def of(self, name: str, call: int = 0) -> Axes:
        """The axes of a call; where nothing is known, the batch is on the first axis."""
        calls = self.get(name, [])
        return calls[call] if call < len(calls) else FIRST

    def problems(self) -> dict[str, str]:
        """Operation → the reason why the examples cannot be told apart in one of its calls."""
        return {name: call.problem for name, calls in self.items() for call in calls if call.problem}

    @property
    def any_constant(self) -> bool:
        """Whether an operation computes the same for every example."""
        return any(call.constant for calls in self.values() for call in calls)


def batch_axes(model: nn.Module, operations: Mapping[str, nn.Module], example: Tensor) -> BatchAxes:
    """The axis that doubles with the number of examples, in each tensor that an operation gets.

    Sizes alone do not tell: a table of coordinates may have as many rows as there are examples. A tensor without such
    an axis is compared between two different examples.

    Args:
        model: in eval mode.
        operations: by path.
        example: a batch of one.

    Returns:
        Nothing for a model that takes no batch of two examples: the batch is then on the first axis.
    """
    other = example.flip(-1) if example.is_floating_point() else example
    try:
        two = _calls(model, operations, torch.cat([example, other]), lambda _, __, args: _shapes(args))
    except Exception:  # whatever a model raises that takes one example at a time
        return BatchAxes()

    def look(name: str, call: int, args: Sequence[Tensor]) -> tuple[list[tuple[int, ...]], list[Tensor | None]]:
        doubled = two[name][call] if call < len(two[name]) else []
        same = [x.clone() if x.shape == shape else None for x, shape in zip(args, doubled, strict=False)]
        return _shapes(args), same

    one = _calls(model, operations, example, look)
    suspects = {
        name: operations[name] for name, calls in one.items() if any(x is not None for _, same in calls for x in same)
    }
    again = _calls(model, suspects, other, lambda _, __, args: [x.clone() for x in args]) if suspects else {}
    found = BatchAxes()
    for name, calls in one.items():
        if len(calls) != len(two[name]):
            found[name] = [Axes(problem="is called as often as the batch has examples")] * len(calls)
            continue
        found[name] = [
            _axes(shapes, two[name][call], same, again[name][call] if call < len(again.get(name, [])) else [])
            for call, (shapes, same) in enumerate(calls)
        ]
        if isinstance(operations[name], (MatMul, nn.Softmax)):
            found[name] = [_with_slices(each) for each in found[name]]
    return found


def axes_and_batches(
    model: nn.Module, operations: Iterable[str], batches: Iterable[Tensor]
) -> tuple[BatchAxes, Iterator[Tensor]]:
    """``batch_axes`` of the operations at these paths on the first example, and all ``batches``, iterated once."""
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        return BatchAxes(), rest
    axes = batch_axes(model, {name: model.get_submodule(name) for name in operations}, first[:1])
    return axes, chain((first,), rest)


def batch_first(x: Tensor, axis: int | None) -> Tensor:
    """``x`` with the axis of its batch in front, as a view."""
    return x.movedim(axis, 0) if axis else x


def _with_slices(found: Axes) -> Axes:
    """The axes of attention, whose slices are along the first one; a batch behind it would count as heads or rows."""
    if all(axis in (0, None) for axis in found.axes):
        return found
    return Axes(problem="has the examples of a batch behind the first axis, where heads and tokens are expected")


def _axes(
    one: Sequence[tuple[int, ...]],
    two: Sequence[tuple[int, ...]],
    same: Sequence[Tensor | None],
    again: Sequence[Tensor],
) -> Axes:
    axes: list[int | None] = []
    for index, (shape, doubled) in enumerate(zip(one, two, strict=True)):
        kept = same[index]
        if kept is not None:
            if index >= len(again) or not _equal(kept, again[index]):
                return Axes(problem="reads a mixture of the examples of a batch")
            axes.append(None)
            continue
        grown = [axis for axis, (n, m) in enumerate(zip(shape, doubled, strict=False)) if n != m]
        if len(shape) != len(doubled) or len(grown) != 1 or doubled[grown[0]] != 2 * shape[grown[0]]:
            return Axes(problem="reads a tensor without an axis that counts the examples of a batch")
        axes.append(grown[0])
    return Axes(tuple(axes))


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(first, second, rtol=1e-4, atol=1e-6, equal_nan=True)


def _shapes(args: Sequence[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(x.shape) for x in args]


def _calls(
    model: nn.Module,
    operations: Mapping[str, nn.Module],
    batch: Tensor,
    look: Callable[[str, int, Sequence[Tensor]], Any],
) -> dict[str, list[Any]]:
    """Operation → what ``look`` returns for each of its calls in a forward of ``batch``."""
    calls: dict[str, list[Any]] = defaultdict(list)

    def hook(name: str, count: int) -> Any:
        def call(_: nn.Module, args: tuple[Any, ...]) -> None:
            calls[name].append(look(name, len(calls[name]), [x for x in args[:count] if isinstance(x, Tensor)]))

        return call

    with ExitStack() as stack:
        for name, module in operations.items():
            handle = module.register_forward_pre_hook(hook(name, 2 if isinstance(module, MatMul) else 1))
            stack.callback(handle.remove)
        no_grad_forward(model, batch)
    return calls
