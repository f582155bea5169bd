"""Packing of integers of 1 to 16 bits into bytes, without padding between them."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

BYTE = 8
WIDEST = 16


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits take."""
    return -(-count * bits // BYTE)


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack ``codes``, row-major: bit j of code i is bit (i·bits + j) mod 8 of byte ⌊(i·bits + j)/8⌋ (little-endian).

    Args:
        codes: any shape, integers in 0 … 2^bits − 1.
        bits: 1 to 16.

    Returns:
        (⌈n·bits/8⌉,) uint8 on the device of ``codes``; unused bits of the last byte are 0.

    Raises:
        ValueError: ``bits`` is out of range, or the codes are not integers or not in range.
    """
    _check_bits(bits)
    if codes.is_floating_point() or codes.dtype == torch.bool:
        raise ValueError(f"expected integer codes, received {codes.dtype}")
    flat = codes.reshape(-1).to(torch.int32)
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < 1 << bits:
        raise ValueError(
            f"expected codes of {bits} bits in 0 … {(1 << bits) - 1}, received {flat.min()} … {flat.max()}"
        )
    stream = flat.new_zeros(packed_bytes(flat.numel(), bits) * BYTE, dtype=torch.uint8)
    _split(flat, stream[: flat.numel() * bits].view(-1, bits))
    packed = flat.new_empty(len(stream) // BYTE, dtype=torch.uint8)
    _join(stream.view(-1, BYTE), packed)
    return packed


def unpack_bits(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Unpack the codes that ``pack_bits`` packed.

    Args:
        packed: (⌈n·bits/8⌉,) uint8, n being the number of elements of ``shape``.
        bits: 1 to 16.
        shape: shape of the codes.

    Returns:
        Codes in 0 … 2^bits − 1, ``shape`` int32, on the device of ``packed``.

    Raises:
        ValueError: ``bits`` is out of range, or the tensor has another dtype or length.
    """
    _check_bits(bits)
    count = prod(shape)
    wanted = packed_bytes(count, bits)
    if packed.dtype != torch.uint8 or packed.shape != (wanted,):
        raise ValueError(
            f"{count} codes of {bits} bits: expected ({wanted},) uint8, received {tuple(packed.shape)} {packed.dtype}"
        )
    stream = packed.new_empty(wanted * BYTE)
    _split(packed, stream.view(-1, BYTE))
    codes = packed.new_empty(count, dtype=torch.int32)
    _join(stream[: count * bits].view(-1, bits), codes)
    return codes.view(shape)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= WIDEST:
        raise ValueError(f"expected 1 to {WIDEST} bits, received {bits}")


def _split(numbers: Tensor, out: Tensor) -> None:
    """Write bit j of each of the (n,) ``numbers`` to column j of ``out``, (n, bits) uint8."""
    for j in range(out.shape[1]):
        out[:, j] = (numbers >> j) & 1


def _join(columns: Tensor, out: Tensor) -> None:
    """The inverse of ``_split``; writes to (n,) ``out``."""
    out.zero_()
    for j in range(columns.shape[1]):
        out |= columns[:, j].to(out.dtype) << j
