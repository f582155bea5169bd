"""Where an operation stands in a model: its block, and its share of the depth."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from qplug.training.reconstruction.blocks import block_contains, find_blocks, modules_in_call_order


@dataclass(frozen=True)
class Depth:
    """The blocks of a model, and the position of each of its operations.

    A position is the share of the depth that is behind the operation's output, as in Q-MLP's Fig. 2: that of the third
    of 24 blocks is 12.5 %. Operations share their block evenly, whatever their number, so that a model and the one that
    was made of it can be drawn on one axis. What comes before the first block is at 0, what comes after the last at 1.

    Attributes:
        blocks: paths of modules, in the order in which a forward enters them; none where the model has none.
        positions: operation or block → 0 … 1.
        owners: operation → its block, or itself where it is in none.
    """

    blocks: tuple[str, ...]
    positions: dict[str, float]
    owners: dict[str, str]


def find_depth(model: nn.Module, operations: Sequence[str], image: Tensor, classes: Container[str]) -> Depth:
    """Place ``operations``, which are paths in the order of the forward.

    A block is an instance of a class that a plugin declares as one (``qplug_blocks``); where there is none, it is what
    the paths of operations have up to their first number, as ``blocks.0`` of timm's ConvMixer, if a forward calls it.

    Args:
        model: the float model, in eval mode.
        operations: paths of modules.
        image: (1, C, H, W) float32.
        classes: ``module:Class`` of what is one block.
    """
    tops = find_blocks(model, operations, image, classes)
    if all(top in operations for top in tops):
        numbered = dict.fromkeys(name for operation in operations if (name := _numbered(operation)))
        tops = modules_in_call_order(model, numbered, image)
    blocks = [top for top in tops if top not in operations]
    owners = {op: next((block for block in blocks if block_contains(block, op)), op) for op in operations}
    if not blocks:
        return Depth((), {op: (index + 1) / len(operations) for index, op in enumerate(operations)}, owners)
    members = {block: [op for op in operations if owners[op] == block] for block in blocks}
    positions = {block: (index + 1) / len(blocks) for index, block in enumerate(blocks)}
    reached = 0.0
    for op in operations:
        if owners[op] in members:
            place, inside = blocks.index(owners[op]), members[owners[op]]
            reached = positions[op] = (place + (inside.index(op) + 1) / len(inside)) / len(blocks)
        else:
            positions[op] = reached
    return Depth(tuple(blocks), positions, owners)


def _numbered(operation: str) -> str:
    """The path up to its first number; empty where that is the whole of it, or where it has none."""
    parts = operation.split(".")
    end = next((index for index, part in enumerate(parts) if part.isdecimal()), len(parts)) + 1
    return ".".join(parts[:end]) if end < len(parts) else ""
