"""Block-wise reconstruction with learned scales, codes and activation steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from qplug import Schedule, Technique, hookimpl

if TYPE_CHECKING:
    from qplug import Block, Reconstruction


class Reconstruct(Technique):
    """Learn alphas, codes and activation steps of a block together, so that its output comes near the float one's.

    Takes blocks with weights that ``mr_biq.binary_coding`` coded, and in them every activation whose quantizer can be
    scaled. The loss is ‖y − ŷ‖² of the block's output + λ·Σ(1 − |2·b̃ − 1|^β) over the soft bits [ours, after
    secondary sources: the paper's Eq. 9 is not to be had]. What a soft bit is where several must turn together is not
    to be had either: ``turn`` [ours], see ``SoftBinaryCoding``. Where they turn together, Σ has one term a weight
    instead of one a bit, and the same λ weighs less. An offset, which only codings of ours have, is learned at the
    alphas' rate. Learning rates, Adam, the cosine for all but the codes, λ and the batch of 32 are those of the paper's
    appendix A; where there are fewer than 20,000 iterations the rates of codes and steps grow [ours]. The paper takes
    12 images a batch for transformers, 2 for ViT-L, and λ = 0.7 for MobileNetV2 and MnasNet. Iterations and β's
    schedule are not printed; they follow secondary sources. Step sizes are learned as logarithms
    (``qplug.LearnedStepSize``), so the paper's rate, in units of the step, becomes a share of it, which is less for
    any step below 1 [ours]. ``learn`` is the ablation of learning scales or codes alone; activation steps are learned
    with either. ``keep`` is QDrop's, which the paper does not have.
    """

    paper = (
        "Jeon et al. 2022, Mr.BiQ: Post-Training Non-Uniform Quantization based on Minimizing the Reconstruction Error"
    )

    class Config(Schedule):
        """The schedule."""

        use: Literal["mr_biq.reconstruct"] = Field("mr_biq.reconstruct", description="which technique this step is")
        learn: Literal["both", "scales", "codes"] = Field("both", description="what of the weights is learned")
        turn: Literal["together", "alone"] = Field(
            "together", description="whether the bits in which a weight's two nearest sums differ turn together"
        )
        scales_rate: float = Field(
            3.5e-4, gt=0.0, le=1.0, description="learning rate of alphas and offsets, in units of the weight; cosine"
        )
        codes_rate: float | None = Field(
            None,
            gt=0.0,
            le=1.0,
            description="learning rate of the codes' logits, constant; null: 1e-3, for fewer iterations × "
            "(20,000/iterations)^1.25",
        )
        steps_rate: float | None = Field(
            None,
            gt=0.0,
            le=1.0,
            description="rate of activation steps, a share of them, cosine; null: 4e-5, for fewer as codes_rate",
        )
        keep: float = Field(
            1.0, gt=0.0, le=1.0, description="share of activations that are quantized in a step (QDrop); 1: all of them"
        )

    @hookimpl
    def qplug_reconstruct(self, block: Block) -> Reconstruction | None:
        """Take blocks that have a binary-coded weight."""
        from qplug_plugins.mr_biq.learner import SoftBinaryCoding
        from qplug_plugins.mr_biq.quantizer import BinaryCodingQuantizer

        from qplug import Rate, Reconstruction, learned_step_sizes

        config = self.config
        learners = learned_step_sizes(block.decisions)
        for decision in block.decisions:
            site, quantizer = decision.site, decision.quantizer
            if site.kind.is_weight and isinstance(quantizer, BinaryCodingQuantizer):
                learners[site.name] = SoftBinaryCoding(block.weights[site.name], quantizer, config.learn, config.turn)
        if not any(isinstance(learner, SoftBinaryCoding) for learner in learners.values()):
            return None
        return Reconstruction(
            learners,
            {
                "scales": Rate(config.scales_rate, cosine=True),
                "codes": Rate.suited(config.codes_rate, 1e-3, config.iterations),
                "step_sizes": Rate.suited(config.steps_rate, 4e-5, config.iterations, cosine=True),
            },
            keep=config.keep,
            **config.scheduled(),
        )
