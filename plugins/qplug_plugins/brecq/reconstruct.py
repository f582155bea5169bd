"""AdaRound and BRECQ: which neighbour each weight takes, learned from outputs on a few unlabelled images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from qplug import Schedule, Technique, hookimpl

if TYPE_CHECKING:
    from qplug import Block, Learner, Reconstruction


class _Settings(Schedule):
    """What both take."""

    rounding_rate: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="Adam's rate of the soft bits; null: 1e-3, for fewer iterations × (20,000/iterations)^1.25",
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
    """Each operation learns which neighbour each of its weights takes.

    Activations keep the quantizers that they have, and the operation sees its input as the quantized operations before
    give it (the paper's asymmetric reconstruction, Eq. 25, without its activation function) [ours]. Weights with other
    than uniform quantizers stay.
    """

    paper = "Nagel et al. 2020, Up or Down? Adaptive Rounding for Post-Training Quantization, Eq. 21–25"

    class Config(_Settings):
        """The schedule."""

        use: Literal["brecq.adaround"] = Field("brecq.adaround", description="which technique this step is")

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
    """Each block learns which neighbours its weights take, and the steps of its activations.

    Deviations from BRECQ's released code: weights and steps are learned together instead of one after the other [ours];
    the error of the output is the plain square unless ``loss`` asks for another: ``fisher`` is Eq. 10, with the
    gradients of the recipe's ``calibration.loss`` [ours]. ``keep: 0.5`` is QDrop. ``scales: true`` learns the weights'
    scales too, the BRECQ-B that Mr.BiQ compares with; its rate is not printed [ours]. Scales and steps are learned as
    logarithms, at rates relative to them [ours]. Weights with other than uniform quantizers stay as they are, and
    so do activations whose quantizer cannot be scaled.
    """

    paper = "Li et al. 2021, BRECQ, Algorithm 1, Eq. 10; Wei et al. 2022, QDrop, Eq. 8; BRECQ-B: Mr.BiQ, Table A4"

    class Config(_Settings):
        """The schedule and what is learned."""

        use: Literal["brecq.brecq"] = Field("brecq.brecq", description="which technique this step is")
        steps: bool = Field(True, description="learn the steps of activations")
        step_rate: float | None = Field(
            None,
            gt=0.0,
            le=1.0,
            description="Adam's rate of steps, a share of them; null: 4e-5, for fewer iterations as rounding_rate",
        )
        scales: bool = Field(False, description="learn the weights' scales too (BRECQ-B)")
        scale_rate: float | None = Field(
            None,
            gt=0.0,
            le=1.0,
            description="Adam's rate of scales, a share of them; null: 4e-5, for fewer iterations as rounding_rate",
        )
        keep: float = Field(1.0, gt=0.0, le=1.0, description="share of activations that are quantized (QDrop: 0.5)")

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
