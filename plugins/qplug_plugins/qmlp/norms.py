"""Replacement of Affine, which only rescales, by LayerNorm or BatchNorm, which restrict the range."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

import qplug
from qplug import Rewrite, Technique, hookimpl, matches


class Norm(Technique):
    """Replace Aff(x) = Diag(α)·x + β (Eq. 2) by y = (x − E[x])/√(Var[x] + ε)·γ + β (Eq. 3), over the channels.

    LayerNorm uses mean and variance of each token; BatchNorm, those of a batch in training and running ones in eval
    mode. Both change the function, so the model must be trained again. Both start at γ = 1 and β = 0, as in the paper,
    which trains from scratch. ``start: affine`` uses α and β of the trained Affine [ours]. BatchNorm then starts with
    γ = α·√(1 + ε) and running statistics of 0 and 1, so that it equals the Affine in eval mode before training.
    LayerNorm then retains an outlier of α.
    """

    paper = "Zhao et al. 2023, Q-MLP, 'Norm-layer design', Eq. 2 and 3, Table 2"

    class Config(qplug.Config):
        """The norm and the modules."""

        use: Literal["qmlp.norm"] = Field("qmlp.norm", description="name of the technique")
        to: Literal["layer_norm", "batch_norm"] = Field("layer_norm", description="replacement of an Affine")
        start: Literal["affine", "fresh"] = Field(
            "fresh", description="initial gain and offset: those of the Affine, or 1 and 0"
        )
        eps: float = Field(1e-6, gt=0, le=1.0, description="ε, added to the variance, in the square of x's units")
        match: tuple[str, ...] = Field(("*",), description="patterns of the norms to replace", min_length=1)

    @hookimpl
    def qplug_rewrite_norm(self, name: str, module: Any) -> Rewrite | None:
        """Take every matching ``Affine``, of timm or of ResMLP's authors."""
        if type(module).__name__ != "Affine" or not matches(name, self.config.match):
            return None
        import torch
        from qplug_plugins.qmlp.modules import TokenBatchNorm
        from torch import nn

        gain, offset = (tensor.detach().flatten().clone() for tensor in (module.alpha, module.beta))
        same, eps = self.config.start == "affine", self.config.eps
        if not same:
            gain, offset = torch.ones_like(gain), torch.zeros_like(offset)
        if self.config.to == "batch_norm":
            what = f"Affine → BatchNorm{', the same until training moves its statistics' * same}"
            return Rewrite(TokenBatchNorm.like(gain, offset, eps).eval(), same, what)
        layer = nn.LayerNorm(len(gain), eps=eps, device=gain.device, dtype=gain.dtype)
        layer.weight.data, layer.bias.data = gain, offset
        return Rewrite(layer.eval().requires_grad_(False), False, "Affine → LayerNorm")
