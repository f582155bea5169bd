"""Functions between the nodes of a recorded attention: scales, masks, and the layouts of products' operands."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qplug.core.types import MASKED


def scaled(query: Tensor, scale: float | None = None) -> Tensor:
    """The query times ``scale``, 1/√D by default; query: (…, N, D)."""
    factor: float = query.shape[-1] ** -0.5 if scale is None else scale
    return query if factor == 1 else query * factor


def repeat_heads(x: Tensor, query: Tensor) -> Tensor:
    """Keys or values (…, H', M, D) of grouped queries (…, H, N, D) → (…, H, M, D)."""
    return x.repeat_interleave(query.shape[-3] // x.shape[-3], dim=-3)


def additive_mask(mask: Tensor) -> Tensor:
    """What a mask adds to scores: a boolean one 0 where it is true, else ``MASKED``; -inf becomes ``MASKED``."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, MASKED)
    return mask.clamp_min(MASKED)


def fill_mask(scores: Tensor, mask: Tensor) -> Tensor:
    """What is added to scores in the place of filling them with -inf where ``mask`` is true."""
    return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, MASKED)


def causal_mask(scores: Tensor) -> Tensor:
    """(N, M) ``MASKED`` above the diagonal, else 0; scores: (…, N, M)."""
    return scores.new_full(scores.shape[-2:], MASKED).triu(1)


def common_axes(x: Tensor, other: Tensor) -> tuple[int, ...]:
    """The leading axes of a product of the last two axes."""
    axes: tuple[int, ...] = torch.broadcast_shapes(x.shape[:-2], other.shape[:-2])
    return axes


def spread(x: Tensor, other: Tensor) -> Tensor:
    """x (…, N, K) with its leading axes repeated to those of ``other``, without a copy."""
    return x.expand(*common_axes(x, other), *x.shape[-2:])


@dataclass(frozen=True)
class Contraction:
    """An einsum of two tensors as a batch of matrix products; every axis is named by a letter.

    Attributes:
        lhs, rhs, out: the letters of the operands and of the result, in their order.
        batch: the letters of both operands and the result; the axis of images first.
        rows, columns: the letters of the left or the right operand and the result.
        summed: the letters of both operands alone.
    """

    lhs: str
    rhs: str
    out: str
    batch: str
    rows: str
    columns: str
    summed: str

    @classmethod
    def of(cls, equation: str, images: str) -> Contraction | None:
        """The contraction of an equation of einsum, or ``None`` if it is none, or ``images`` is an axis of its rows.

        Args:
            equation: as einsum takes it, with ``->``.
            images: the letter of the axis of images.
        """
        operands, _, out = equation.replace(" ", "").partition("->")
        lhs, _, rhs = operands.partition(",")
        letters = lhs + rhs + out
        if not (lhs and rhs and letters.isalpha() and all(len(set(part)) == len(part) for part in (lhs, rhs, out))):
            return None
        if not set(out) >= set(lhs) ^ set(rhs) or not set(out) <= set(lhs) | set(rhs):
            return None
        batch = images + "".join(letter for letter in out if letter in lhs and letter in rhs and letter != images)
        summed = "".join(letter for letter in lhs if letter in rhs and letter not in out)
        rows, columns = ("".join(x for x in side if x in out and x not in batch) for side in (lhs, rhs))
        return cls(lhs, rhs, out, batch, rows, columns, summed) if images in out else None

    def operand(self, x: Tensor, right: bool, transposed: bool = False) -> Tensor:
        """The left operand as (batch, rows, summed), or the right one as (batch, columns, summed).

        Axes of the batch that the operand lacks have the size 1.

        Args:
            x: the operand in its own layout.
            right: whether it is the right one.
            transposed: whether the last two axes are swapped.
        """
        letters, kept = (self.rhs, self.columns) if right else (self.lhs, self.rows)
        present = [letter for letter in self.batch if letter in letters]
        x = x.permute([letters.index(letter) for letter in (*present, *kept, *self.summed)])
        first, last = len(present), len(present) + len(kept)
        x = x.reshape(*x.shape[:first], _size(x.shape[first:last]), _size(x.shape[last:]))
        for axis, letter in enumerate(self.batch):
            x = x if letter in letters else x.unsqueeze(axis)
        return x.transpose(-2, -1) if transposed else x

    def result(self, product: Tensor, lhs: Tensor, rhs: Tensor) -> Tensor:
        """The product (batch, rows, columns) in the layout of the result; ``lhs`` and ``rhs`` give the sizes."""
        sizes = dict(zip(self.rhs, rhs.shape, strict=True)) | dict(zip(self.lhs, lhs.shape, strict=True))
        order = self.batch + self.rows + self.columns
        return product.reshape([sizes[letter] for letter in order]).permute(
            [order.index(letter) for letter in self.out]
        )


def _size(shape: torch.Size) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def left_operand(x: Tensor, *letters: str) -> Tensor:
    """``Contraction(*letters).operand`` of the left operand."""
    return Contraction(*letters).operand(x, right=False)


def right_operand(x: Tensor, *letters: str) -> Tensor:
    """``Contraction(*letters).operand`` of the right operand."""
    return Contraction(*letters).operand(x, right=True)


def transposed_right_operand(x: Tensor, *letters: str) -> Tensor:
    """The right operand as (batch, summed, columns)."""
    return Contraction(*letters).operand(x, right=True, transposed=True)


def contraction_result(product: Tensor, lhs: Tensor, rhs: Tensor, *letters: str) -> Tensor:
    """``Contraction(*letters).result``."""
    return Contraction(*letters).result(product, lhs, rhs)
