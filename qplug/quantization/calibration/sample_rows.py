"""Rows that a sampler collects, in one buffer."""

from __future__ import annotations

import torch
from torch import Tensor


class SampleRows:
    """Sampled rows that arrive in pieces, in one buffer that the first piece allocates.

    Separate small pieces among the large tensors of each batch would fragment the heap: with 16 batches, calibration
    then took twice the memory of one batch.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self.length = 0

    def add(self, start: int, piece: Tensor, expected: int) -> None:
        """Add ``piece`` to the rows from ``start`` on, which are zero at first; the buffer has ``expected`` rows."""
        end = start + len(piece)
        if self._buffer is None:
            self._buffer = piece.new_zeros((max(expected, end), *piece.shape[1:]))
        elif end > len(self._buffer):
            self._buffer = torch.cat([self._buffer, piece.new_zeros((end - len(self._buffer), *piece.shape[1:]))])
        self._buffer[start:end] += piece
        self.length = max(self.length, end)

    def values(self) -> Tensor:
        """All rows so far, as a view."""
        if self._buffer is None:
            raise ValueError("no row was sampled: the operation was not called")
        return self._buffer[: self.length]

    def replace_rows(self, values: Tensor | None) -> None:
        """Replace all rows by ``values``, or remove them."""
        self._buffer, self.length = values, 0 if values is None else len(values)
