"""Block-wise reconstruction with learned scales, codes and activation steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from qplug import Schedule, Technique, hookimpl

if TYPE_CHECKING:
    from qplug import Block, Reconstruction


class Reconstruct(Technique):
    """Learn alphas, codes and activation step sizes of a block together, to reproduce the block's float output.

    It takes blocks with weights of ``mr_biq.binary_coding``, and their activations whose quantizers can be scaled. The
    loss is ‖y − ŷ‖² of the block's output + λ·Σ(1 − |2·b̃ − 1|^β) over the soft bits [ours, after secondary sources: the
    paper's Eq. 9 is not available]. The paper's soft bits for several bits that must change together are not available
    either: ``turn`` [ours], see ``SoftBinaryCoding``. With ``turn: together``, Σ has one term per weight instead of one
    per bit, so the same λ has less weight. An offset, which only our codings have, is learned at the alphas' rate.

    Learning rates, Adam, the cosine schedule for all but the codes, λ and the batch size of 32 are from the paper's
    appendix A. With fewer than 20,000 iterations, the rates of codes and step sizes increase [ours]. The paper uses
    batches of 12 images for transformers and 2 for ViT-L, and λ = 0.7 for MobileNetV2 and MnasNet. Its number of
    iterations and its schedule of β are not printed; both follow secondary sources. Step sizes are learned as
    logarithms (``qplug.LearnedStepSize``). The paper's rate, in units of the step, is thus used as a relative rate,
    which is smaller for any step below 1 [ours]. ``learn`` is the ablation of learning only scales or only codes;
    activation step sizes are learned with both. ``keep`` is from QDrop and is not in the paper.
    """

    paper = (
        "Jeon et al. 2022, Mr.BiQ: Post-Training Non-Uniform Quantization based on Minimizing the Reconstruction Error"
    )

    class Config(Schedule):
        """The schedule."""

        use: Literal["mr_biq.reconstruct"] = Field("mr_biq.reconstruct", description="name of the technique")
        learn: Literal["both", "scales", "codes"] = Field("both", description="learned parameters of weights")
        turn: Literal["together", "alone"] = Field(
            "together", description="whether the bits in which a weight's two nearest sums differ change together"
        )
        scales_rate: float = Field(
            3.5e-4, gt=0.0, le=1.0, description="learning rate of alphas and offsets, in units of the weight; cosine"
        )
        codes_rate: float | None = Field(
            None,
            gt=0.0,
            le=1.0,
            description="learning rate of the codes' logits, constant; null: 1e-3, multiplied by "
            "(20,000/iterations)^1.25 for fewer than 20,000 iterations",
        )
        steps_rate: float | None = Field(
            None,
            gt=0.0,
            le=1.0,
            description="relative learning rate of activation step sizes, cosine; null: 4e-5, scaled as codes_rate",
        )
        keep: float = Field(
            1.0, gt=0.0, le=1.0, description="fraction of activations that are quantized per iteration (QDrop); 1: all"
        )

    @hookimpl
    def qplug_reconstruct(self, block: Block) -> Reconstruction | None:
        """Take blocks with a binary-coded weight."""
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
