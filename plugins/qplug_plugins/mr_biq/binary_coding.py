"""Binary-coded weights: a post-training technique, and the initialization of Mr.BiQ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import qplug
from qplug import Granularity, QuantizerChoice, QuantSpec, Site, Technique, hookimpl

if TYPE_CHECKING:
    from qplug import SiteStats


class BinaryCoding(Technique):
    """w ≈ Σ alpha_i·b_i with b_i in {−1, +1}: q bits, and q scales for each output channel.

    Greedy residual coding is followed by an alternation: alpha = least squares for the codes, and codes = the nearest
    of the 2^q sums, until the squared error of the weight no longer improves. A second alternation starts from the best
    uniform grid, and each row uses the better result [ours]. ``uniform`` is Mr.BiQ-Uniform, alpha_i = 2·alpha_{i+1}
    with an offset; its initialization, a search over fractions of the range, is not printed [ours]. ``offset`` adds an
    offset to non-uniform codes [ours]. Without it, their sums are symmetric around 0, so rows of asymmetric weights can
    have a larger error than with ``uniform``. With it and ``refine``, they never have.

    The recipe's ``symmetric`` has no effect. Values are symmetric around 0 without ``uniform`` and ``offset``, and
    asymmetric with ``uniform``, as in the paper. The main text of the paper is not available; details that are not in
    its appendix follow secondary sources.
    """

    paper = (
        "Jeon et al. 2022, Mr.BiQ: Post-Training Non-Uniform Quantization based on Minimizing the Reconstruction Error"
    )

    class Config(qplug.Config):
        """The format of the codes."""

        use: Literal["mr_biq.binary_coding"] = Field("mr_biq.binary_coding", description="name of the technique")
        uniform: bool = Field(False, description="whether each alpha is twice the next, with an offset")
        offset: bool = Field(
            False, description="whether each row has an offset that is added to its sums; always with uniform"
        )
        group_size: int | None = Field(
            None, ge=1, description="number of weights that share scales, along a channel's inputs; null: a whole row"
        )
        refine: bool = Field(True, description="whether to alternate after the greedy (or searched) initialization")

    @hookimpl
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice | None:
        """Take weights, with scales per channel or per tensor, by the recipe's granularity."""
        from qplug_plugins.mr_biq.coding import powers
        from qplug_plugins.mr_biq.fitting import fit_binary, fit_grid, in_groups
        from qplug_plugins.mr_biq.quantizer import BinaryCodingQuantizer, check_bits

        if not site.kind.is_weight:
            return None
        check_bits(spec.bits)
        config, size = self.config, self.config.group_size
        channels = len(stats.sample) if spec.granularity is Granularity.PER_CHANNEL else 1
        w = (
            in_groups(stats.sample, channels, size).cpu().double()
        )  # on the CPU, so that results are equal on every device
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
