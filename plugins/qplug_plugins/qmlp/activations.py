"""Replacement of ReLU and GELU by PACT or ReLU6, which are bounded on both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import qplug
from qplug import Rewrite, Technique, hookimpl, matches

if TYPE_CHECKING:
    from torch import nn


class BoundedActivation(Technique):
    """Replace ReLU and GELU by PACT, y = 0.5·(|x| − |x − α| + α) with a learnable α (Eq. 4), or by ReLU6, α = 6 fixed.

    Both change the function above α, and for GELU also below 0, so the model must be trained again, together with
    PACT's α. The paper does not print the initial α. It is 6 by default, the bound of ReLU6. A bound that clips no
    value has no gradient, so choose one within the range. The paper does not print Choi et al.'s penalty on α² either.
    Here there is none, unless ``qat.weight_decay`` is set, which also decays α [ours]. Other activations, including
    bounded ones, do not change.
    """

    paper = "Zhao et al. 2023, Q-MLP, 'Activation layer design', Eq. 4, Table 3; Choi et al. 2018, PACT"

    class Config(qplug.Config):
        """The bound and the modules."""

        use: Literal["qmlp.bounded_activation"] = Field("qmlp.bounded_activation", description="name of the technique")
        to: Literal["pact", "relu6"] = Field("pact", description="replacement of ReLU and GELU")
        alpha: float = Field(6.0, gt=0, le=1e4, description="PACT's initial upper bound, in the activation's units")
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
