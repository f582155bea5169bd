"""Uniform bit widths, for comparison with mixed precision of the same average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

import qplug
from qplug import Technique, hookimpl

if TYPE_CHECKING:
    from qplug import SqnrTable


class UniformBits(Technique):
    """One bit width for all weights and one for all activations, in place of those of the recipe's ``quantize``."""

    paper = "single precision (SP) in MPTQ-ViT, Tables 1 to 3"
    allocates = ("weights", "activations")

    class Config(qplug.Config):
        """The bit widths."""

        use: Literal["baseline.uniform_bits"] = Field("baseline.uniform_bits", description="name of the technique")
        weights: int = Field(description="bits of every weight", ge=2, le=16)
        activations: int = Field(description="bits of every activation", ge=2, le=16)

    @hookimpl(trylast=True)
    def qplug_allocate_bits(self, table: SqnrTable) -> Mapping[str, int]:
        """Assign the bit widths to all sites."""
        return {s.name: self.config.weights if s.kind.is_weight else self.config.activations for s in table.sites}
