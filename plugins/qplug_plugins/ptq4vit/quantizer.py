"""The twin uniform quantizer with two steps of any ratio, as in PTQ4ViT's released code after GELU."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from qplug import Quantizer


class TwinQuantizer(Quantizer):
    """x̂ = s·clamp(round(x/s), −2^(b−1), 2^(b−1) − 1), with one step s for negative values and one for all others.

    Both sides share the code 0, so b bits suffice (PTQ4ViT, section 3.2).

    Args:
        negative: () float32, positive: the step of negative values.
        positive: () float32, positive: the step of the others.
        bits: 2 to 16.
    """

    kind: ClassVar[str] = "twin"
    negative: Tensor
    positive: Tensor

    def __init__(self, negative: Tensor | float, positive: Tensor | float, bits: int) -> None:
        super().__init__()
        self.bits, self.low, self.high = bits, -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        for name, step in (("negative", negative), ("positive", positive)):
            self.register_buffer(name, torch.as_tensor(step, dtype=torch.float32).detach().clone())

    def scaled(self, factor: Tensor | float) -> TwinQuantizer:
        """The quantizer with both steps multiplied by ``factor``."""
        return TwinQuantizer(self.negative * factor, self.positive * factor, self.bits)

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize; gradients pass inside the range and stop outside."""
        values = self.infer(x)
        if not x.requires_grad:
            return values
        inside = (x >= self.low * self.negative) & (x <= self.high * self.positive)
        passing = torch.where(inside, x, x.detach())
        return passing + (values - passing).detach()

    @torch.no_grad()
    def infer(self, x: Tensor) -> Tensor:
        """The quantized values, without gradients."""
        step = torch.where(x < 0, self.negative, self.positive).to(x.dtype)
        return torch.div(x, step).round_().clamp_(self.low, self.high).mul_(step)

    def to_dict(self) -> dict[str, Any]:
        """Both steps as JSON values."""
        steps = {"negative": self.negative.item(), "positive": self.positive.item()}
        return {"kind": self.kind, "bits": self.bits, **steps}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TwinQuantizer:
        """The quantizer from the output of ``to_dict``."""
        return cls(data["negative"], data["positive"], data["bits"])

    def describe(self) -> str:
        """For example ``twin int4 ×9.4``: the positive step is 9.4 times the negative one."""
        return f"twin int{self.bits} ×{float(self.positive / self.negative):.3g}"
