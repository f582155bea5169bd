"""The log √2 quantizer for the outputs of Softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from qplug_plugins.repq_vit.percentile import CANDIDATES, Percentiles, search

import qplug
from qplug import Granularity, QuantizerChoice, QuantSpec, Site, SiteKind, Technique, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from qplug import SiteStats


class LogSqrt2(Technique):
    """Logarithmic quantizer of base √2: x̂ = s·2^(−code/2), code = round(−2·log2(x/s)), and 0 for the last code.

    For inference, the paper changes the base to 2, with a factor that depends on the code's parity; the values are the
    same. The released code searches s among three percentiles by the squared error of the tensor
    (``search: percentile``); here the error is that of its capped sample [ours]. ``search: output`` uses the error of
    the matmul that reads the tensor [ours]. All outputs have equal weight unless another technique needs gradients.
    """

    paper = "Li et al. 2023, RepQ-ViT (arXiv:2212.08254), section 3.3, and its released code"

    class Config(qplug.Config):
        """The search of the scale."""

        use: Literal["repq_vit.log_sqrt2"] = Field("repq_vit.log_sqrt2", description="name of the technique")
        search: Literal["percentile", "output"] = Field("percentile", description="method that chooses the scale")
        percentiles: Percentiles = CANDIDATES

    @hookimpl
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice | None:
        """Take post-Softmax sites with one scale."""
        from qplug import LogQuantizer, line_search

        if site.kind is not SiteKind.POST_SOFTMAX or spec.granularity is not Granularity.PER_TENSOR:
            return None

        def log_quantizer(_: Tensor, high: Tensor) -> LogQuantizer:
            return LogQuantizer(high, 2, spec.bits)

        if self.config.search == "percentile":
            quantizer = search(stats, spec.granularity, self.config.percentiles, log_quantizer)
        else:
            factor, _ = line_search(stats, lambda f: log_quantizer(f, stats.max * f), high=1.0)
            quantizer = log_quantizer(factor, stats.max * factor)
        return QuantizerChoice(quantizer, f"log √2 from {float(quantizer.scale):.3g}")
