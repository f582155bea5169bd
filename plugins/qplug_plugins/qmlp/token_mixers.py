"""Multiple token-mixing MLPs: channels in groups, each with a token mixer of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import qplug
from qplug import Rewrite, Technique, hookimpl, matches

if TYPE_CHECKING:
    from torch import nn


class TokenMixers(Technique):
    """Give each of g groups of channels a token mixer of its own, in the place of one for all (Fig. 1).

    Parameters of a token mixer are used again for every channel, which makes them sensitive; with groups each is used
    g times less. MACs stay as they are, and the model grows by g − 1 token mixers a block. The paper does not print g;
    4 gives the sizes of its Table 5 and no other number does [ours]. It trains anew, where here every group starts as a
    copy of the trained mixer, so that the function is the same until training moves them apart [ours].

    A group's first linear reads a part of what the norm before it gives: its input is a ``linear_input``, where that of
    a mixer for all channels is a ``post_layernorm``.
    """

    paper = "Zhao et al. 2023, Q-MLP, 'Multiple token-mixing MLPs', Fig. 1, Table 5"

    class Config(qplug.Config):
        """How many groups, and of what."""

        use: Literal["qmlp.token_mixers"] = Field("qmlp.token_mixers", description="which technique this step is")
        groups: int = Field(4, ge=2, le=1024, description="groups of channels, each with a mixer of its own")
        match: tuple[str, ...] = Field(
            ("*.mlp_tokens", "*.linear_tokens"),
            description="patterns of the token mixers, modules from (…, channels, tokens) to the same; "
            "the default is timm's MLP-Mixer and ResMLP",
            min_length=1,
        )

    @hookimpl
    def qplug_rewrite_module(self, name: str, module: nn.Module) -> Rewrite | None:
        """Take every module that matches."""
        if not matches(name, self.config.match):
            return None
        from qplug_plugins.qmlp.modules import MultipleTokenMixers

        mixers = MultipleTokenMixers(module, self.config.groups).eval()
        return Rewrite(mixers, True, f"one token mixer → {self.config.groups}, each for a group of channels")
