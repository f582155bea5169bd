"""The noisy bias for the inputs of linears."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import qplug
from qplug import Granularity, QuantizerChoice, QuantSpec, Site, SiteKind, Technique, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from qplug import SiteStats

KINDS = {kind.value: kind for kind in (SiteKind.LINEAR_INPUT, SiteKind.POST_LAYERNORM, SiteKind.POST_GELU)}


class NoisyBias(Technique):
    """N = m + n·u for every input channel of a linear, with u uniform on [−s, s], drawn once and then fixed.

    The scale s of the base quantizer is searched first, by the error of the linear's output; then m in [−s, s] and n in
    [0, 2], on even grids and by the same error, as in the authors' code. Their grids have 400 and 2,000 points, and
    their error is unweighted. Here fewer points suffice, since the minimum is flat, and outputs are weighted by
    importance [ours]. The paper's text states uniform noise, and its code draws from a normal distribution; here the
    noise is uniform. m = n = 0 is a candidate, so the error on the sample is at most that of the base quantizer. If no
    noise is better, the base quantizer is used.
    """

    paper = "Liu et al. 2023, NoisyQuant, sections 3.2 and 3.3, Eq. 4–7, and its released code"
    gradients = True

    class Config(qplug.Config):
        """The search."""

        use: Literal["noisyquant.noisy_bias"] = Field("noisyquant.noisy_bias", description="name of the technique")
        kinds: tuple[Literal["linear_input", "post_layernorm", "post_gelu"], ...] = Field(
            ("linear_input", "post_layernorm", "post_gelu"), description="kinds of activations to take", min_length=1
        )
        means: int = Field(21, ge=1, le=1001, description="candidates of m, over [−s, s]")
        ranges: int = Field(20, ge=1, le=2000, description="candidates of n, over [0, 2]")

    @hookimpl
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice | None:
        """Take inputs of linears that have one scale, channels last."""
        import torch
        from qplug_plugins.noisyquant.quantizer import NoisyQuantizer

        from qplug import UniformQuantizer, line_search

        taken = site.kind in [KINDS[kind] for kind in self.config.kinds]
        if not taken or spec.granularity is not Granularity.PER_TENSOR or site.channel_axis != -1:
            return None
        start = UniformQuantizer.from_range(stats.min, stats.max, spec)
        factor, least = line_search(stats, start.scaled)
        base = start.scaled(factor)
        unit = (torch.rand(stats.channel_max.shape) * 2.0 - 1.0).to(stats.channel_max)  # equal on every device
        best, noise = float(least), torch.zeros_like(unit)

        def better(candidate: Tensor) -> bool:
            nonlocal best, noise
            quantized = NoisyQuantizer(base, candidate).infer(stats.sample)
            error = float(stats.output_error(quantized, Granularity.PER_TENSOR))
            if error < best:
                best, noise = error, candidate
                return True
            return False

        for m in torch.linspace(-1.0, 1.0, self.config.means).tolist():
            better(torch.full_like(unit, m * float(base.scale)))
        mean, width = noise, 0.0
        for n in torch.linspace(0.0, 2.0, self.config.ranges + 1)[1:].tolist():
            if better(mean + n * base.scale * unit):
                width = n
        if not bool(noise.any()):
            return QuantizerChoice(base, "no noise reduces the error: uniform")
        gain = 1.0 - best / float(least)
        return QuantizerChoice(
            NoisyQuantizer(base, noise),
            f"m = {float(mean[0] / base.scale):.2f} s, n = {width:.2f}, {gain:.0%} less error",
        )
