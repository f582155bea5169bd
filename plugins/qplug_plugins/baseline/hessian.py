"""Hessian-guided ranges as in PTQ4ViT, with a loss whose gradient is not zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from qplug_plugins.baseline.parts import narrowed

import qplug
from qplug import QuantizerChoice, QuantSpec, Site, Technique, hookimpl

if TYPE_CHECKING:
    from qplug import SiteStats


class Hessian(Technique):
    """The range that minimizes Σ (dL/dO)²·(Ô − O)² over the sampled outputs O of the operation that reads the tensor.

    Deviations from PTQ4ViT: L is the recipe's ``calibration.loss``. By default, it is a probe whose squared gradient
    estimates the Hessian of the KL divergence; the released code takes the gradient of KL(float ‖ float), which is zero
    [ours]. Candidates are a geometric grid that is refined once, instead of 100 evenly spaced ones [ours]. The other
    operand stays in float, so sites are independent and there is no alternation [ours].
    """

    paper = "Yuan et al. 2022, PTQ4ViT, section 3.3, Eq. 7–8"
    gradients = True

    class Config(qplug.Config):
        """The search."""

        use: Literal["baseline.hessian"] = Field("baseline.hessian", description="name of the technique")
        candidates: int = Field(24, ge=2, le=1000, description="coarse candidates, geometrically spaced")
        refine: int = Field(8, ge=0, le=1000, description="fine candidates around the best coarse one")
        low: float = Field(0.02, gt=0.0, le=1.0, description="smallest factor of the min-max range, without unit")
        high: float = Field(1.2, ge=1.0, le=4.0, description="largest factor of the min-max range, without unit")

    @hookimpl(trylast=True)
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice:
        """Take every site."""
        return narrowed(spec, stats, self.config, "output", "Hessian-guided")
