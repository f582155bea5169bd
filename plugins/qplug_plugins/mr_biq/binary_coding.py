"""Binary-coded weights: the start of Mr.BiQ, and a post-training technique of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import qplug
from qplug import Granularity, QuantizerChoice, QuantSpec, Site, Technique, hookimpl

if TYPE_CHECKING:
    from qplug import SiteStats


class BinaryCoding(Technique):
    """w ≈ Σ alpha_i·b_i with b_i in {−1, +1}: q bits, and q scales for each output channel.

    Greedy residual coding, then alternately alpha = least squares given the codes and codes = the nearest of the 2^q
    sums, until the squared error of the weight no longer improves. The alternation is started from the best uniform
    grid too, and each row keeps the better end [ours]. ``uniform`` is Mr.BiQ-Uniform, alpha_i = 2·alpha_{i+1} with an
    offset; its start, a search over shares of the range, is not printed [ours]. ``offset`` gives non-uniform codes one
    too [ours]: without it their sums lie symmetrically around 0, so that on lopsided rows they can lose more than the
    grid that ``uniform`` finds, which has one; with it, refined, they never do.

    The format alone says which values there are: ``symmetric`` of the recipe changes nothing (without ``uniform`` and
    ``offset`` they are symmetric around 0, with ``uniform`` they are not, as in the paper). The main text of the paper
    is not to be had; what is not in its appendix follows secondary sources.
    """

    paper = (
        "Jeon et al. 2022, Mr.BiQ: Post-Training Non-Uniform Quantization based on Minimizing the Reconstruction Error"
    )

    class Config(qplug.Config):
        """The format of the codes."""

        use: Literal["mr_biq.binary_coding"] = Field("mr_biq.binary_coding", description="which technique this step is")
        uniform: bool = Field(False, description="whether each alpha is twice the next, with an offset")
        offset: bool = Field(
            False, description="whether a value of each row is added to its sums; with uniform there always is one"
        )
        group_size: int | None = Field(
            None, ge=1, description="weights that share scales, along the inputs of a channel; null: a whole row"
        )
        refine: bool = Field(True, description="whether to alternate; else the greedy (or searched) start stays")

    @hookimpl
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice | None:
        """Take weights, with scales for each channel or for the whole of one, as the recipe says."""
        from qplug_plugins.mr_biq.coding import powers
        from qplug_plugins.mr_biq.fitting import fit_binary, fit_grid, in_groups
        from qplug_plugins.mr_biq.quantizer import BinaryCodingQuantizer, check_bits

        if not site.kind.is_weight:
            return None
        check_bits(spec.bits)
        config, size = self.config, self.config.group_size
        channels = len(stats.sample) if spec.granularity is Granularity.PER_CHANNEL else 1
        w = in_groups(stats.sample, channels, size).cpu().double()  # the same on every device
        if config.uniform:
            step, offset = fit_grid(w, spec.bits, refine=config.refine)
            alphas = step.float() * powers(spec.bits).float()
        else:
            alphas, offset = fit_binary(w, spec.bits, config.refine, config.offset)
        quantizer = BinaryCodingQuantizer(alphas, offset, size, config.uniform).to(stats.sample.device)
        return QuantizerChoice(quantizer, self._reason())

    def _reason(self) -> str:
        if self.config.uniform:
            return "searched grid, alternated" if self.config.refine else "searched grid"
        return "greedy, alternated" if self.config.refine else "greedy"
