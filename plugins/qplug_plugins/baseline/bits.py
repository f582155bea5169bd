"""Uniform bits: single precision at the averages that a mixed-precision recipe is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

import qplug
from qplug import Technique, hookimpl

if TYPE_CHECKING:
    from qplug import SqnrTable


class UniformBits(Technique):
    """The same bits for every weight, and the same for every activation, whatever the recipe's ``quantize`` says."""

    paper = "single precision (SP) in MPTQ-ViT, Tables 1 to 3"
    allocates = ("weights", "activations")

    class Config(qplug.Config):
        """The bits."""

        use: Literal["baseline.uniform_bits"] = Field(
            "baseline.uniform_bits", description="which technique this step is"
        )
        weights: int = Field(description="bits of every weight", ge=2, le=16)
        activations: int = Field(description="bits of every activation", ge=2, le=16)

    @hookimpl(trylast=True)
    def qplug_allocate_bits(self, table: SqnrTable) -> Mapping[str, int]:
        """Give every site its bits."""
        return {s.name: self.config.weights if s.kind.is_weight else self.config.activations for s in table.sites}
