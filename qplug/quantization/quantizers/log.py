"""The logarithmic quantizer with negative powers of 2 or √2, for values concentrated near 0, as after Softmax."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from qplug.quantization.quantizers.base import Quantizer, clamp_ste


class LogQuantizer(Quantizer):
    """x̂ = s·2^(−code/r) with code = clamp(round(−r·log2(x/s)), 0, 2^b − 1), and the last code is 0.

    FQ-ViT's log2 has r = 1, RepQ-ViT's log√2 has r = 2. Both papers print 2^b magnitudes. Their released code also maps
    values below the smallest magnitude to 0, which would need another code. Here the last of the 2^b codes is this 0,
    so that b bits suffice [ours]. Negative values become 0.

    Args:
        scale: () float32, positive: the largest value.
        rate: r, codes per octave: 1 or 2.
        bits: 2 to 16.
    """

    kind: ClassVar[str] = "log"
    scale: Tensor

    def __init__(self, scale: Tensor | float, rate: int, bits: int) -> None:
        super().__init__()
        self.bits, self.rate = bits, rate
        self.last = (1 << bits) - 1
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32).detach().clone())

    def scaled(self, factor: Tensor | float) -> LogQuantizer:
        """The same codes with a scale ``factor`` times as large."""
        return LogQuantizer(self.scale * factor, self.rate, self.bits)

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize; the gradient passes between 0 and the scale, and stops outside."""
        values = self.infer(x)
        if not x.requires_grad:
            return values
        inside = clamp_ste(x, 0.0, self.scale)
        return inside + (values - inside).detach()

    @torch.no_grad()
    def infer(self, x: Tensor) -> Tensor:
        """The values without gradients; log2 of 0 is −∞, whose code exceeds the last code."""
        code = torch.div(x, self.scale).clamp_(0.0, 1.0).log2_().mul_(-self.rate).round_()
        zero = code >= self.last
        return code.div_(-self.rate).exp2_().mul_(self.scale).masked_fill_(zero, 0.0)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The codes, with the ties of ``infer``."""
        code = torch.div(x, self.scale).clamp_(0.0, 1.0).log2_().mul_(-self.rate).round_()
        return code.clamp_(max=self.last).to(torch.int32)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """s·2^(−code/r), and 0 for the last code."""
        values = codes.to(torch.float32).div_(-self.rate).exp2_().mul_(self.scale)
        return values.masked_fill_(codes >= self.last, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Scale and rate as JSON values."""
        return {"kind": self.kind, "bits": self.bits, "scale": self.scale.item(), "rate": self.rate}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LogQuantizer:
        """The quantizer with the values of ``to_dict``."""
        return cls(data["scale"], data["rate"], data["bits"])

    def describe(self) -> str:
        """For example ``log √2 uint4``."""
        return f"log {'2' if self.rate == 1 else '√2'} uint{self.bits}"
