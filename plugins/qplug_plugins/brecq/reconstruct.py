"""AdaRound and BRECQ: rounding of weights learned from outputs on a few unlabelled images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from qplug import Schedule, Technique, hookimpl

if TYPE_CHECKING:
    from qplug import Block, Learner, Reconstruction


class _Settings(Schedule):
    """Settings of both techniques."""

    rounding_rate: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="Adam's learning rate of the soft bits; null: 1e-3, multiplied by (20,000/iterations)^1.25 "
        "for fewer than 20,000 iterations",
    )


def roundings(block: Block, learn_scale: bool = False) -> dict[str, Learner]:
    """A learner for every weight of the block that has a uniform quantizer."""
    from qplug_plugins.brecq.rounding import LearnedRounding

    from qplug import UniformQuantizer

    grids = {d.site.name: d.quantizer for d in block.decisions if d.site.name in block.weights}
    return {
        name: LearnedRounding(block.weights[name], grid, learn_scale)
        for name, grid in grids.items()
        if isinstance(grid, UniformQuantizer)
    }


class AdaRound(Technique):
    """Learned rounding of weights, up or down, operation by operation.

    Quantizers of activations do not change. The input of an operation comes from the quantized operations before it:
    the paper's asymmetric reconstruction, Eq. 25, without its activation function [ours]. Weights whose quantizer is
    not uniform do not change.
    """

    paper = "Nagel et al. 2020, Up or Down? Adaptive Rounding for Post-Training Quantization, Eq. 21–25"

    class Config(_Settings):
        """The schedule."""

        use: Literal["brecq.adaround"] = Field("brecq.adaround", description="name of the technique")

    @hookimpl
    def qplug_reconstruct(self, block: Block) -> Reconstruction | None:
        """Take every block that has weights on a uniform grid."""
        from qplug import Rate, Reconstruction

        learners = roundings(block)
        if not learners:
            return None
        rates = {"codes": Rate.suited(self.config.rounding_rate, 1e-3, self.config.iterations)}
        return Reconstruction(learners, rates, each_operation=True, **self.config.scheduled())


class Brecq(Technique):
    """Learned rounding of weights and learned step sizes of activations, block by block.

    Deviations from BRECQ's released code: weights and step sizes are learned together instead of one after the other
    [ours]. The error of the output is the squared error by default; ``loss: fisher`` is Eq. 10, with the gradients of
    the recipe's ``calibration.loss`` [ours]. ``keep: 0.5`` is QDrop. ``scales: true`` also learns the scales of
    weights: the BRECQ-B that Mr.BiQ compares with, whose learning rate is not printed [ours]. Scales and step sizes are
    learned as logarithms, at relative rates [ours]. Weights whose quantizer is not uniform do not change, and neither
    do activations whose quantizer cannot be scaled.
    """

    paper = "Li et al. 2021, BRECQ, Algorithm 1, Eq. 10; Wei et al. 2022, QDrop, Eq. 8; BRECQ-B: Mr.BiQ, Table A4"

    class Config(_Settings):
        """The schedule and the learned parameters."""

        use: Literal["brecq.brecq"] = Field("brecq.brecq", description="name of the technique")
        steps: bool = Field(True, description="learn the step sizes of activations")
        step_rate: float | None = Field(
            None,
            gt=0.0,
            le=1.0,
            description="Adam's relative learning rate of step sizes; null: 4e-5, scaled as rounding_rate",
        )
        scales: bool = Field(False, description="also learn the scales of weights (BRECQ-B)")
        scale_rate: float | None = Field(
            None,
            gt=0.0,
            le=1.0,
            description="Adam's relative learning rate of scales; null: 4e-5, scaled as rounding_rate",
        )
        keep: float = Field(1.0, gt=0.0, le=1.0, description="fraction of activations that are quantized (QDrop: 0.5)")

    @hookimpl
    def qplug_reconstruct(self, block: Block) -> Reconstruction | None:
        """Take every block that has weights on a uniform grid."""
        from qplug import Rate, Reconstruction, learned_step_sizes

        config = self.config
        learners = roundings(block, config.scales)
        if not learners:
            return None
        if config.steps:
            learners |= learned_step_sizes(block.decisions)
        rates = {
            "codes": Rate.suited(config.rounding_rate, 1e-3, config.iterations),
            "scales": Rate.suited(config.scale_rate, 4e-5, config.iterations, cosine=True),
            "step_sizes": Rate.suited(config.step_rate, 4e-5, config.iterations, cosine=True),
        }
        return Reconstruction(learners, rates, keep=config.keep, **config.scheduled())
