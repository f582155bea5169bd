"""Affine → LayerNorm or BatchNorm: a norm that restricts the range, in the place of one that only rescales."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

import qplug
from qplug import Rewrite, Technique, hookimpl, matches


class Norm(Technique):
    """Replace Aff(x) = Diag(α)·x + β (Eq. 2) by y = (x − E[x])/√(Var[x] + ε)·γ + β (Eq. 3), over the channels.

    LayerNorm takes mean and variance of each token, BatchNorm those of a batch in training and running ones in eval
    mode. Both are another function, which training has to fit; both start from γ = 1 and β = 0, as the paper's do,
    which it trains anew. ``start: affine`` takes over the trained Affine's α and β: BatchNorm then begins with
    γ = α·√(1 + ε) and running statistics of 0 and 1, so that in eval mode it is the Affine until training moves it, and
    LayerNorm keeps an outlier that sits in α [ours].
    """

    paper = "Zhao et al. 2023, Q-MLP, 'Norm-layer design', Eq. 2 and 3, Table 2"

    class Config(qplug.Config):
        """Which norm, and where."""

        use: Literal["qmlp.norm"] = Field("qmlp.norm", description="which technique this step is")
        to: Literal["layer_norm", "batch_norm"] = Field("layer_norm", description="what takes the place of an Affine")
        start: Literal["affine", "fresh"] = Field(
            "fresh", description="gain and offset to begin with: the Affine's own, or 1 and 0"
        )
        eps: float = Field(1e-6, gt=0, le=1.0, description="ε, added to the variance, in the square of x's units")
        match: tuple[str, ...] = Field(("*",), description="patterns of the norms to replace", min_length=1)

    @hookimpl
    def qplug_rewrite_norm(self, name: str, module: Any) -> Rewrite | None:
        """Take every ``Affine`` (timm's, and that of ResMLP's authors) that matches."""
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
