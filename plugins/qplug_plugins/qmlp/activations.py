"""ReLU and GELU → PACT or ReLU6: activations that are bounded on both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import qplug
from qplug import Rewrite, Technique, hookimpl, matches

if TYPE_CHECKING:
    from torch import nn


class BoundedActivation(Technique):
    """Replace ReLU and GELU by PACT, y = 0.5·(|x| − |x − α| + α) with a learnable α (Eq. 4), or by ReLU6, α = 6 fixed.

    Both are another function above α, and below 0 in the place of GELU: training has to fit the model again, and learns
    PACT's α with it. The paper does not print the first α: 6 by default, so that both bounds start at the same place; a
    bound that clips nothing has no gradient, so choose one within the range. Nor does it print the penalty on α² that
    Choi et al. train with: none is added here, unless ``qat.weight_decay`` is given, which decays α too [ours]. Other
    activations, and those bounded already, are left.
    """

    paper = "Zhao et al. 2023, Q-MLP, 'Activation layer design', Eq. 4, Table 3; Choi et al. 2018, PACT"

    class Config(qplug.Config):
        """Which bound, and where."""

        use: Literal["qmlp.bounded_activation"] = Field(
            "qmlp.bounded_activation", description="which technique this step is"
        )
        to: Literal["pact", "relu6"] = Field("pact", description="what takes the place of ReLU and GELU")
        alpha: float = Field(6.0, gt=0, le=1e4, description="PACT's first upper bound, in the activation's units")
        match: tuple[str, ...] = Field(("*",), description="patterns of the activations to replace", min_length=1)

    @hookimpl
    def qplug_rewrite_activation(self, name: str, module: nn.Module) -> Rewrite | None:
        """Take every ReLU and GELU that matches."""
        from qplug_plugins.qmlp.modules import Pact
        from torch import nn

        from qplug import is_gelu

        known = type(module) is nn.ReLU or is_gelu(module)
        if not known or not matches(name, self.config.match):
            return None
        what = "GELU" if is_gelu(module) else "ReLU"
        if self.config.to == "relu6":
            return Rewrite(nn.ReLU6().eval(), False, f"{what} → ReLU6")
        bounded = Pact(self.config.alpha).eval().requires_grad_(False)
        return Rewrite(bounded, False, f"{what} → PACT, α = {self.config.alpha:g}")
