"""Positions of operations in a model: their block, and their share of the depth."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from qplug.training.reconstruction.blocks import block_contains, find_blocks, modules_in_call_order


@dataclass(frozen=True)
class Depth:
    """The blocks of a model, and the position of each operation.

    A position is the share of the depth up to the operation's output, as in Q-MLP's Fig. 2: that of the third of 24
    blocks is 12.5 %. The operations of a block divide its share evenly. So a model and its rewritten copy, with another
    number of operations, share one axis. Operations before the first block are at 0, those after the last block at 1.

    Attributes:
        blocks: paths of the block modules, in the order of the forward; empty if the model has no blocks.
        positions: operation or block → position between 0 and 1.
        owners: operation → its block, or the operation itself if it is in no block.
    """

    blocks: tuple[str, ...]
    positions: dict[str, float]
    owners: dict[str, str]


def find_depth(model: nn.Module, operations: Sequence[str], image: Tensor, classes: Container[str]) -> Depth:
    """Positions of ``operations``.

    A block is an instance of a class that a plugin declares (``qplug_blocks``). Without such a class, a block is the
    path of an operation up to its first number, such as ``blocks.0`` of timm's ConvMixer, if a forward calls it.

    Args:
        model: float model in eval mode.
        operations: paths of modules, in the order of the forward.
        image: (1, C, H, W) float32.
        classes: ``module:Class`` of the block classes.
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
    """The path up to its first number; empty if that is the whole path, or if it has no number."""
    parts = operation.split(".")
    end = next((index for index, part in enumerate(parts) if part.isdecimal()), len(parts)) + 1
    return ".".join(parts[:end]) if end < len(parts) else ""
