"""Log-int-softmax: attention probabilities as powers of two, with an integer exponential."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import qplug
from qplug import QuantizerChoice, QuantSpec, Rewrite, Site, SiteKind, Technique, hookimpl

if TYPE_CHECKING:
    from torch import nn

    from qplug import SiteStats


class LogIntSoftmax(Technique):
    """x̂ = 2^−code with code = clamp(round(−log2(x)), 0, 2^b − 1), and 0 for the last code (see ``LogQuantizer``).

    With ``integer_exp``, Softmax computes with integers of a fixed step, with I-BERT's second-order polynomial for the
    exponential, as in the paper. Deviations: the step is a parameter; the authors use the scale of the quantized
    Softmax input, which is unknown before calibration [ours]. The authors round the sum over the exponential to an
    integer and take its logarithm; here the quantizer takes the logarithm of the quotient [ours]. At the default step,
    the error of the exponential is at most 3 % down to e^−3 and 8 % down to e^−10. The logits of
    ``qplug.testing.toy_vit`` change by 0.2 % of their norm. The function is thus not preserved, and the run warns.
    """

    paper = "Lin et al. 2022, FQ-ViT, section 3.3, Eq. 10–16; Kim et al. 2021, I-BERT, section 3.4"

    class Config(qplug.Config):
        """The computation of Softmax."""

        use: Literal["fq_vit.log_int_softmax"] = Field("fq_vit.log_int_softmax", description="name of the technique")
        integer_exp: bool = Field(False, description="replace Softmax by an integer Softmax")
        step: float = Field(0.0625, gt=0.0, le=0.5, description="step of the integers, in units of Softmax's input")

    @hookimpl
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice | None:
        """Take post-Softmax sites of any granularity: the scale is 1."""
        from qplug import LogQuantizer

        if site.kind is not SiteKind.POST_SOFTMAX:
            return None
        return QuantizerChoice(LogQuantizer(1.0, 1, spec.bits).to(stats.sample.device), "powers of two")

    @hookimpl
    def qplug_rewrite_module(self, name: str, module: nn.Module) -> Rewrite | None:
        """Replace every Softmax, masked ones included, if ``integer_exp`` is set."""
        dim = getattr(module, "dim", None)
        if type(module).__name__ not in ("Softmax", "MaskedSoftmax") or not isinstance(dim, int):
            return None
        if not self.config.integer_exp:
            return None
        from qplug_plugins.fq_vit.integer_softmax import IntegerSoftmax

        return Rewrite(IntegerSoftmax(dim, self.config.step), preserves=False, reason="exponential in integers")
