"""A lowered model traced by torch.export, with the operands and outputs of its operations."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from qplug.export.calls import Call
from qplug.export.formats.operations import operands


@dataclass
class _Calls:
    """Calls of a traced forward. torch.export would reset lists that a module holds itself."""

    of: list[tuple[str, int]] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


class Watched(nn.Module):
    """A lowered model that returns its logits, then the operands and the output of each operation's calls."""

    def __init__(self, model: nn.Module, operations: Sequence[str]) -> None:
        super().__init__()
        self.model, self.calls = model, _Calls()
        for path in operations:
            model.get_submodule(path).register_forward_hook(self._hook(path))
        self.eval()

    def _hook(self, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            count = operands(module)
            self.calls.of.append((path, count))
            values = (*args[:count], out)
            self.calls.values += [value.clone() for value in values]  # an in-place ReLU may overwrite them

        return hook

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The logits, then the operands and the output of each call."""
        self.calls.of.clear()
        self.calls.values.clear()
        logits = self.model(x)
        return (logits, *self.calls.values)


def trace(
    model: nn.Module, operations: Sequence[str], example: Tensor
) -> tuple[ExportedProgram, list[tuple[str, int]]]:
    """Trace a lowered model, for batches of any size.

    Args:
        model: from ``lower``.
        operations: of the plan.
        example: a batch of one.

    Returns:
        The program of ``Watched``, and (path, number of operands) of every call.
    """
    watched = Watched(model, operations)
    pair = torch.cat([example, example])  # torch.export would take a batch size of 1 for a constant
    with torch.no_grad(), _masks_of_a_forward():
        program = torch.export.export(watched, (pair,), dynamic_shapes=({0: Dim("batch")},), strict=False)
    return program, watched.calls.of


@contextmanager
def _masks_of_a_forward() -> Iterator[None]:
    """Within it, models of transformers make no attention mask without padding, as in every forward.

    They make one while torch.export runs, for any sequence length. Attention was read without it.
    """
    masks = sys.modules.get("transformers.masking_utils")
    name = "is_torchdynamo_exporting"
    if masks is None or not hasattr(masks, name):
        yield
        return
    asked = getattr(masks, name)
    setattr(masks, name, lambda: False)
    try:
        yield
    finally:
        setattr(masks, name, asked)


def named(
    calls: Sequence[tuple[str, int]], outputs: Sequence[Any], names: dict[int, str]
) -> tuple[list[Call], list[str]]:
    """The calls, with one name for each value. One operation's output may be another's operand.

    Args:
        calls: from ``trace``.
        outputs: the values after the logits, as objects of a graph.
        names: ``id`` of a value → its name, if it has one already. The other values' names are added.

    Returns:
        The calls, and the name of every output.
    """
    found: list[Call] = []
    rest = list(outputs)
    for number, (path, count) in enumerate(calls):
        place = path if path not in [call.operation for call in found] else f"{path}.{number}"
        roles = ("input", "output") if count == 1 else ("lhs", "rhs", "output")
        values, rest = rest[: count + 1], rest[count + 1 :]
        given = [names.setdefault(id(value), f"{place}.{role}") for value, role in zip(values, roles, strict=True)]
        found.append(Call(path, tuple(given[:-1]), given[-1]))
    return found, [names[id(value)] for value in outputs]
