"""What a technique is told of a block, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from qplug.core.types import LossName
    from qplug.quantization.plan import Decision
    from qplug.training.learners import Learner
    from qplug.training.reconstruction.losses import OutputLoss


@dataclass(frozen=True)
class Block:
    """A part of the model that is reconstructed as a whole: a residual or transformer block, or a single operation.

    Attributes:
        name: dotted path of its module.
        decisions: those of its sites, in model order, as ``qplug_make_quantizer`` decided them.
        weights: site name → its float32 weight, for the sites that are weights; do not write to them.
    """

    name: str
    decisions: Sequence[Decision]
    weights: Mapping[str, Tensor]


ITERATIONS = 20_000
"""BRECQ's, for which its learning rates are meant, and Mr.BiQ's; AdaRound's paper has 10,000 at the same rate."""
SHORTER = 1.25
"""Exponent by which rates grow where there are fewer."""
LARGEST = 0.2


@dataclass(frozen=True)
class Rate:
    """Adam's learning rate, and whether a cosine takes it to 0 over the iterations."""

    start: float
    cosine: bool = False

    @classmethod
    def suited(cls, given: float | None, usual: float, iterations: int, cosine: bool = False) -> Rate:
        """The rate ``given``; or ``usual``, for fewer iterations · (20,000/iterations)^1.25, 0.2 at most [ours].

        A step of Adam is about as long as the rate, and a soft bit has some way to go until it is another one: 1,000
        iterations at AdaRound's 1e-3 turn hardly any. The exponent is above 1, by which a parameter would move as far
        as in 20,000: in blocks 1, 5 and 10 of DeiT-Ti at W2A8, 500 iterations at a rate of 0.04 (exponent 1), 0.1
        (1.25) and 0.2 (with λ = 0.1) leave 0.266, 0.243 and 0.237 of the start's error on images kept apart with
        BRECQ, and 0.349, 0.308 and 0.288 with Mr.BiQ, whose start is better.
        """
        longer = max(1.0, ITERATIONS / iterations) ** SHORTER
        return cls(min(usual * longer, LARGEST) if given is None else given, cosine)


@dataclass(frozen=True)
class Reconstruction:
    """How a block is reconstructed: by minimizing the error of its output plus ``weight``·Σ penalties of soft bits.

    Attributes:
        learners: site name → what is learned there; other sites keep their quantizers.
        rates: by the names that the learners use (``codes``, ``scales``, ``steps``, …).
        iterations: steps of Adam for each block.
        batch_size: images of each step, drawn by permutations of all, whose remainders are dropped.
        weight: λ of the penalty.
        beta: the penalty's exponent, which falls linearly from the first to the second value after the warm-up.
        warmup: share of the iterations before the penalty sets in.
        keep: share of elements that are quantized where activations are, QDrop's 1 − p: the others pass in float, and
            so do those of the block's input, drawn anew in each step. 1 drops nothing.
        loss: the cost of an output error: a name of ``qplug.training.reconstruction.losses``, or an ``OutputLoss``.
        each_operation: reconstruct those of the block's operations that have a learner one after the other, as AdaRound
            does, not the block.
        compile: compute iterations by ``torch.compile``: less time for each, after up to two minutes for the first of a
            kind of block. Sums are rounded in another order, and where activations are dropped others are.
        graph: on a CUDA device, replay the iteration as a CUDA graph; not where a learner waits for the host.
    """

    learners: Mapping[str, Learner]
    rates: Mapping[str, Rate]
    iterations: int = ITERATIONS
    batch_size: int = 32
    weight: float = 0.01
    beta: tuple[float, float] = (20.0, 2.0)
    warmup: float = 0.2
    keep: float = 1.0
    loss: LossName | OutputLoss = "mse"
    each_operation: bool = False
    compile: bool = False
    graph: bool = True
