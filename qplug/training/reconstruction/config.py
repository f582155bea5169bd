"""The block that a technique receives (``Block``), and the settings that it returns (``Reconstruction``)."""

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
        decisions: the decisions of its sites, in model order, with the quantizers of ``qplug_make_quantizer``.
        weights: site name → float32 weight, for the sites that are weights; do not write to them.
    """

    name: str
    decisions: Sequence[Decision]
    weights: Mapping[str, Tensor]


ITERATIONS = 20_000
"""Iterations of BRECQ and Mr.BiQ, for which BRECQ's rates are meant; AdaRound's paper has 10,000 at the same rate."""
RATE_EXPONENT = 1.25
"""Exponent by which rates grow if a block has fewer iterations."""
LARGEST_RATE = 0.2


@dataclass(frozen=True)
class Rate:
    """Adam's learning rate, constant or decayed to 0 by a cosine over the iterations."""

    start: float
    cosine: bool = False

    @classmethod
    def suited(cls, given: float | None, usual: float, iterations: int, cosine: bool = False) -> Rate:
        """The rate ``given``, or else ``usual`` adapted to ``iterations`` [ours].

        Below 20,000 iterations, ``usual`` is multiplied by (20,000/iterations)^1.25; the result is at most 0.2.

        A step of Adam is about as long as the rate, and a soft bit needs many such steps to change its value: 1,000
        iterations at AdaRound's 1e-3 change hardly any bit. With exponent 1, a parameter moves as far as in 20,000
        iterations. A larger exponent leaves less error. Measured in blocks 1, 5 and 10 of DeiT-Ti at W2A8 over 500
        iterations, as a share of the initial error on held-out images:

        - BRECQ: 0.266 at a rate of 0.04 (exponent 1), 0.243 at 0.1 (1.25), 0.237 at 0.2 (with λ = 0.1).
        - Mr.BiQ, which starts from a smaller error: 0.349, 0.308 and 0.288 at the same rates.
        """
        factor = max(1.0, ITERATIONS / iterations) ** RATE_EXPONENT
        return cls(min(usual * factor, LARGEST_RATE) if given is None else given, cosine)


@dataclass(frozen=True)
class Reconstruction:
    """Settings of a block's reconstruction, which minimizes the output error plus ``weight``·Σ penalties of soft bits.

    Attributes:
        learners: site name → learner; other sites keep their quantizers.
        rates: learning rates, by the names of parameter groups in ``Learner.learned`` (``codes``, ``scales``, …).
        iterations: steps of Adam for each block.
        batch_size: images per step, drawn from permutations of all images; the remainder of a permutation is dropped.
        weight: λ of the penalty.
        beta: the penalty's exponent, which falls linearly from the first to the second value after the warm-up.
        warmup: share of the iterations before the penalty starts.
        keep: share of activation elements that are quantized, QDrop's 1 − p. The other elements stay in float, those
            of the block's input too; they are drawn anew in each step. 1 drops nothing.
        loss: the cost of an output error: a name of ``qplug.training.reconstruction.losses``, or an ``OutputLoss``.
        each_operation: as AdaRound does, reconstruct each operation with a learner in turn, instead of the block.
        compile: compute iterations by ``torch.compile``. Each iteration takes less time, but the first of each kind of
            block takes up to two minutes. Sums are rounded in another order, and QDrop drops other elements.
        graph: on a CUDA device, replay the iteration as a CUDA graph; ``False`` if a learner synchronizes with the
            host.
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
