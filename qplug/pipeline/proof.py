"""The outputs of a run's evaluation, held so that they can be compared with outputs that are computed again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

HELD_BYTES = 1 << 20
"""Bytes of outputs that a run folder holds for each model; of the other examples it holds digests alone."""
DIGEST_BYTES = 32


def proof(name: str, outputs: Tensor) -> dict[str, Tensor]:
    """Tensors for ``evaluation.safetensors``.

    Args:
        name: ``float`` or ``quantized``.
        outputs: (N, …) float32, on the CPU.

    Returns:
        ``<name>.sha256`` (N, 32) uint8, of each example's outputs; ``<name>.outputs`` (K, …), those of the first K
        examples, as many as ``HELD_BYTES`` hold and at least one.
    """
    held = max(1, HELD_BYTES // max(1, outputs[0].numel() * 4))
    return {f"{name}.sha256": _digests(outputs), f"{name}.outputs": outputs[:held].clone()}


def _digests(outputs: Tensor) -> Tensor:
    rows = outputs.contiguous().flatten(1).numpy()
    content = b"".join(hashlib.sha256(row.tobytes()).digest() for row in rows)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, DIGEST_BYTES)


@dataclass(frozen=True)
class Comparison:
    """Outputs that were computed again, against those of the run.

    Attributes:
        examples: number of examples.
        same: number of examples whose outputs are equal bit for bit.
        change: ‖now − then‖/‖then‖ over the outputs that the run folder holds.
    """

    examples: int
    same: int
    change: float

    @property
    def equal(self) -> bool:
        """Whether all outputs are equal bit for bit."""
        return self.same == self.examples


def compare_outputs(name: str, held: dict[str, Tensor], outputs: Tensor) -> Comparison:
    """Compare ``outputs`` with the tensors of ``proof``; raises ``ValueError`` where the shapes differ."""
    digests, first = held[f"{name}.sha256"], held[f"{name}.outputs"]
    now = outputs[: len(first)]
    if len(digests) != len(outputs) or now.shape != first.shape:
        raise ValueError(f"expected outputs of shape ({len(digests)}, …) {tuple(first.shape[1:])}")
    same = int((_digests(outputs) == digests).all(1).sum())
    change = float((now.double() - first.double()).norm() / first.double().norm().clamp_min(1e-300))
    return Comparison(len(outputs), same, change)
