"""The quantizer of binary-coded weights. Imported when a technique creates one."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from qplug_plugins.mr_biq.coding import nearest, powers, sums
from qplug_plugins.mr_biq.fitting import in_groups
from torch import Tensor

from qplug import InputError, Quantizer

MOST_BITS = 8


def level_sums(alphas: Tensor, offset: Tensor | None) -> Tensor:
    """(rows, q) and (rows, 1) → (rows, 2^q) Σ alpha_i·b_i + offset, by code, in a fixed order of summation."""
    return sums(alphas) if offset is None else sums(alphas) + offset


class BinaryCodingQuantizer(Quantizer):
    """ŵ = the nearest of the 2^q sums Σ alpha_i·b_i (+ offset), b_i in {−1, +1}; the lower one in a tie.

    The quantizer is for weights, whose first axis is that of output channels. 0 may be quantized to another value,
    which is harmless, since weights have no zero padding.

    Args:
        alphas: (rows, q) float, q from 2 to 8, in any order and of any sign. The number of rows is that of output
            channels, multiplied by the number of groups, or 1 for the whole tensor.
        offset: (rows, 1) float, added to every sum, or ``None``.
        group_size: number of weights that share scales, consecutive along the flattened input axes; ``None``: a row.
        uniform: alpha_i = 2·alpha_{i+1} (Mr.BiQ-Uniform); only the last alpha is stored.

    Raises:
        InputError: the shapes or the number of bits are invalid, or scales are not finite, or not twice the next one.
    """

    kind: ClassVar[str] = "binary_coding"
    alphas: Tensor
    offset: Tensor | None

    def __init__(
        self, alphas: Tensor, offset: Tensor | None = None, group_size: int | None = None, uniform: bool = False
    ) -> None:
        super().__init__()
        self.register_buffer("alphas", alphas.detach().to(torch.float32).clone())
        self.register_buffer("offset", None if offset is None else offset.detach().to(torch.float32).clone())
        self.bits, self.group_size, self.uniform = self.alphas.shape[-1], group_size, uniform
        self._check()

    def _check(self) -> None:
        if self.alphas.dim() != 2 or (self.offset is not None and self.offset.shape != (len(self.alphas), 1)):
            shape = None if self.offset is None else tuple(self.offset.shape)
            raise InputError(
                f"expected alphas (rows, bits) and offset (rows, 1), received {tuple(self.alphas.shape)} and {shape}"
            )
        check_bits(self.bits)
        if not all(bool(scale.isfinite().all()) for scale in self.buffers()):
            raise InputError("scales of a binary coding must be finite", fix="lower the learning rate of the scales")
        if self.uniform and not torch.equal(self.alphas, self.alphas[:, -1:] * powers(self.bits).to(self.alphas)):
            raise InputError("each alpha of a uniform binary coding must be twice the next", fix="or set uniform=False")

    def rows(self, x: Tensor) -> Tensor:
        """A weight as (rows, n), for the rows of ``alphas``; raises ``InputError`` if rows or groups differ."""
        count = len(self.alphas)
        channels = 1 if count == 1 or self.group_size is not None else len(x)
        flat = in_groups(x, channels, self.group_size)
        if len(flat) != count:
            raise InputError(
                f"expected a weight with {count} rows of scales, received {tuple(x.shape)} with {len(flat)} rows"
            )
        return flat

    def levels(self) -> Tensor:
        """(rows, 2^q) float32 sums, by code."""
        return level_sums(self.alphas, self.offset)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize a weight (O, I) or (O, I, kh, kw); gradients pass between the least and the largest sum."""
        values = self.infer(x)
        if not x.requires_grad:
            return values
        low, high = self.levels().to(x.dtype).aminmax(dim=1, keepdim=True)
        inside = torch.clamp(self.rows(x), low, high).view(x.shape)
        return values + (inside - inside.detach())

    @torch.no_grad()
    def infer(self, x: Tensor) -> Tensor:
        """The quantized values, without gradients."""
        return self.decode(self.encode(x)).to(x.dtype)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The codes: bit i, from the most significant, is set if b_i is +1."""
        codes = nearest(self.rows(x).to(self.alphas.dtype), self.levels())
        return codes.view(x.shape).to(torch.int32)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """The sums of these codes."""
        return self.levels().gather(1, self.rows(codes).to(torch.int64)).view(codes.shape)

    def storage_bits(self, shape: tuple[int, ...]) -> int:
        """q bits per weight, and 32 bits per alpha and offset; a uniform coding stores one alpha per row."""
        count = 1
        for size in shape:
            count *= size
        offsets = 0 if self.offset is None else self.offset.numel()
        return count * self.bits + 32 * ((len(self.alphas) if self.uniform else self.alphas.numel()) + offsets)

    def to_dict(self) -> dict[str, Any]:
        """Alphas and offsets as nested lists; float32 values are exact in JSON."""
        scales = {"alphas": self.alphas.tolist(), "offset": None if self.offset is None else self.offset.tolist()}
        return {"kind": self.kind, "bits": self.bits, **scales, "group_size": self.group_size, "uniform": self.uniform}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BinaryCodingQuantizer:
        """The quantizer from the output of ``to_dict``."""
        offset = None if data["offset"] is None else torch.tensor(data["offset"], dtype=torch.float32)
        alphas = torch.tensor(data["alphas"], dtype=torch.float32)
        return cls(alphas, offset, data["group_size"], data["uniform"])

    def describe(self) -> str:
        """For example ``binary coding 3 bit ×192``: the bits, and the number of rows of scales if there are several."""
        words = f"{'uniform ' if self.uniform else ''}binary coding {self.bits} bit"
        words += "" if self.offset is None else " with offset"
        words += "" if self.group_size is None else f" by {self.group_size}"
        return words + (f" ×{len(self.alphas)}" if len(self.alphas) > 1 else "")


def check_bits(bits: int) -> None:
    """Raise ``InputError`` for more bits than a table of 2^bits sums allows."""
    if not 2 <= bits <= MOST_BITS:
        raise InputError(
            f"binary coding has a table of 2^bits sums per row and takes 2 to {MOST_BITS} bits, received {bits}",
            fix=f"set at most {MOST_BITS} bits, or leave these weights to another technique",
        )
