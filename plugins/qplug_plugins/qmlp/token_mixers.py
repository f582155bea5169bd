"""Multiple token-mixing MLPs: one token mixer per group of channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import qplug
from qplug import Rewrite, Technique, hookimpl, matches

if TYPE_CHECKING:
    from torch import nn


class TokenMixers(Technique):
    """Replace the token mixer of all channels by g token mixers for g groups of channels (Fig. 1).

    All channels share the parameters of a token mixer, which makes them sensitive; with g groups, each parameter is
    used g times less. MACs do not change, and the model grows by g − 1 token mixers per block. The paper does not print
    g; only 4 gives the sizes of its Table 5 [ours]. The paper trains from scratch. Here every group starts with a copy
    of the trained mixer, so the function is the same before training [ours].

    The first linear of a group reads a part of the norm's output. Its input is thus a ``linear_input``, while the input
    of a mixer for all channels is a ``post_layernorm``.
    """

    paper = "Zhao et al. 2023, Q-MLP, 'Multiple token-mixing MLPs', Fig. 1, Table 5"

    class Config(qplug.Config):
        """The number of groups and the modules."""

        use: Literal["qmlp.token_mixers"] = Field("qmlp.token_mixers", description="name of the technique")
        groups: int = Field(4, ge=2, le=1024, description="number of groups of channels, with one mixer each")
        match: tuple[str, ...] = Field(
            ("*.mlp_tokens", "*.linear_tokens"),
            description="patterns of the token mixers, modules from (…, channels, tokens) to the same shape; "
            "the default is timm's MLP-Mixer and ResMLP",
            min_length=1,
        )

    @hookimpl
    def qplug_rewrite_module(self, name: str, module: nn.Module) -> Rewrite | None:
        """Take every matching module."""
        if not matches(name, self.config.match):
            return None
        from qplug_plugins.qmlp.modules import MultipleTokenMixers

        mixers = MultipleTokenMixers(module, self.config.groups).eval()
        return Rewrite(mixers, True, f"one token mixer → {self.config.groups}, each for a group of channels")
