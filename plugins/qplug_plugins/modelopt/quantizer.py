"""ModelOpt's ``pre_quant_scale`` as a quantizer. Imported when a technique makes one."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from qplug import Quantizer, UniformQuantizer


class ScaledQuantizer(Quantizer):
    """x̂ = Q(x·p)/p, with Q uniform and one factor p per channel of the last axis.

    ModelOpt multiplies the input by p and the weight by 1/p without undoing it; the product of both is the same.

    Args:
        base: Q.
        factor: (C,) float32, positive: p.
    """

    kind: ClassVar[str] = "modelopt.scaled"
    factor: Tensor

    def __init__(self, base: UniformQuantizer, factor: Tensor) -> None:
        super().__init__()
        self.bits, self.base = base.bits, base
        self.register_buffer("factor", factor.detach().to(torch.float32))

    def scaled(self, factor: Tensor | float) -> ScaledQuantizer:
        """The quantizer of a range ``factor`` times as wide."""
        return ScaledQuantizer(self.base.scaled(factor), self.factor)

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize (…, C); gradients pass inside the range and stop outside."""
        out: Tensor = self.base(x * self.factor) / self.factor
        return out

    @torch.no_grad()
    def infer(self, x: Tensor) -> Tensor:
        """As ``forward``."""
        return self.base.infer(x * self.factor).div_(self.factor)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The codes of the base quantizer."""
        return self.base.encode(x * self.factor)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """The base quantizer's values of these codes, divided by p."""
        return self.base.decode(codes).div_(self.factor)

    def to_dict(self) -> dict[str, Any]:
        """The base quantizer and the factors as JSON values; float32 values are exact."""
        return {"kind": self.kind, "bits": self.bits, "base": self.base.to_dict(), "factor": self.factor.tolist()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ScaledQuantizer:
        """The quantizer from the output of ``to_dict``."""
        return cls(UniformQuantizer.from_dict(data["base"]), torch.tensor(data["factor"], dtype=torch.float32))

    def describe(self) -> str:
        """For example ``scaled uniform int8 ×192``."""
        return f"scaled {self.base.describe()}"
