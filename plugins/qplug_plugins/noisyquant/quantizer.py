"""A uniform quantizer with fixed noise per channel. Imported when a technique creates one."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from qplug import Quantizer, UniformQuantizer


class NoisyQuantizer(Quantizer):
    """x̂ = Q(x + N) − N, with Q uniform and one value of N per channel of the last axis (NoisyQuant, Eq. 6 and 7).

    On hardware, N is added to the activation, and W·N is subtracted from the layer's bias. 0 is quantized to another
    value, which is harmless, since inputs of linears have no zero padding.

    Args:
        base: Q, with one scale.
        noise: (C,) float32, N in the units of x.
    """

    kind: ClassVar[str] = "noisyquant.noisy"
    noise: Tensor

    def __init__(self, base: UniformQuantizer, noise: Tensor) -> None:
        super().__init__()
        self.bits, self.base = base.bits, base
        self.register_buffer("noise", noise.detach().to(torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize (…, C); gradients pass inside the range and stop outside."""
        out: Tensor = self.base(x + self.noise) - self.noise
        return out

    @torch.no_grad()
    def infer(self, x: Tensor) -> Tensor:
        """As ``forward``."""
        return self.base.infer(x + self.noise).sub_(self.noise)

    def to_dict(self) -> dict[str, Any]:
        """The base quantizer and the noise as JSON values; float32 values are exact."""
        return {"kind": self.kind, "bits": self.bits, "base": self.base.to_dict(), "noise": self.noise.tolist()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> NoisyQuantizer:
        """The quantizer from the output of ``to_dict``."""
        return cls(UniformQuantizer.from_dict(data["base"]), torch.tensor(data["noise"], dtype=torch.float32))

    def describe(self) -> str:
        """For example ``noisy uniform int6``."""
        return f"noisy {self.base.describe()}"
