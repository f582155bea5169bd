"""The uniform quantizer, symmetric or asymmetric, with one scale per tensor, channel or head."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from qplug.core.types import QuantSpec
from qplug.quantization.quantizers.base import Quantizer, fake_quantize, integer_range

SMALLEST_SCALE = torch.finfo(torch.float32).tiny


class UniformQuantizer(Quantizer):
    """x̂ = s·(clamp(round(x/s + z), l, h) − z), MPTQ-ViT Eq. 2 and 3 (there z = 0).

    Args:
        scale: float32, positive, broadcastable with the tensor: () or (C, 1, …) or (H, 1, 1).
        zero_point: float32, broadcastable with ``scale``: integers, or any float if ``QuantSpec.zero_point`` allows it;
            ``None`` for a symmetric quantizer.
        bits: 2 to 16.
        signed: the integers are signed, as always in the paper's Eq. 2. Here a symmetric quantizer of a tensor without
            negative values is unsigned, because it would waste half of the signed codes [ours].
    """

    kind: ClassVar[str] = "uniform"
    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor | None, bits: int, signed: bool) -> None:
        super().__init__()
        self.bits, self.signed = bits, signed
        self.low, self.high = integer_range(bits, signed)
        self.symmetric = zero_point is None
        self.register_buffer("scale", scale.detach().to(torch.float32))
        zero = torch.zeros(()) if zero_point is None else zero_point.detach().to(torch.float32)
        self.register_buffer("zero_point", zero.to(scale.device), persistent=not self.symmetric)

    @classmethod
    def from_range(cls, low: Tensor, high: Tensor, spec: QuantSpec) -> UniformQuantizer:
        """The quantizer whose grid covers exactly [low, high] (any broadcastable shape, float).

        Symmetric: s = max(|low|, |high|)/(2^(b−1) − 1), or s = high/(2^b − 1) if no low is negative.

        Asymmetric: s = (high − low)/(2^b − 1) and z = −low/s (Q-MLP, Eq. 5 and 6). Q-MLP's Eq. 1 counts codes from
        −2^(b−1), so its zero point is smaller by 2^(b−1). For an integer zero point, the range is first widened to
        contain 0, and z is rounded [ours]. A float zero point is not rounded, and 0 need not lie on the grid.

        An empty range gets the smallest normal scale, which maps every value to about 0.
        """
        low, high = low.to(torch.float32), high.to(torch.float32)
        if spec.symmetric:
            signed = bool((low < 0).any())
            top = integer_range(spec.bits, signed)[1]
            span = torch.maximum(low.abs(), high.abs()) if signed else high
            return cls((span / top).clamp_min(SMALLEST_SCALE), None, spec.bits, signed)
        top = integer_range(spec.bits, False)[1]
        keeps_float = (high > low) & (spec.zero_point == "float")  # a constant needs 0 in its range to have a scale
        low = torch.where(keeps_float, low, low.clamp_max(0.0))
        high = torch.where(keeps_float, high, high.clamp_min(0.0))
        scale = ((high - low) / top).clamp_min(SMALLEST_SCALE)
        zero = -low / scale
        return cls(scale, torch.where(keeps_float, zero, zero.round().clamp(0, top)), spec.bits, False)

    def scaled(self, factor: Tensor | float) -> UniformQuantizer:
        """The same integers over a range ``factor`` times as wide (broadcastable with ``scale``)."""
        zero = None if self.symmetric else self.zero_point
        return UniformQuantizer((self.scale * factor).clamp_min(SMALLEST_SCALE), zero, self.bits, self.signed)

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize; gradients pass inside the range and stop outside."""
        return fake_quantize(x, self.scale, None if self.symmetric else self.zero_point, self.low, self.high)

    @torch.no_grad()
    def infer(self, x: Tensor) -> Tensor:
        """As ``forward``, in one buffer: memory traffic dominates, so all operations after the first are in place."""
        codes = torch.div(x, self.scale)
        if self.symmetric:
            return codes.round_().clamp_(self.low, self.high).mul_(self.scale)
        return codes.add_(self.zero_point).round_().clamp_(self.low, self.high).sub_(self.zero_point).mul_(self.scale)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The integers, counted from the smallest code."""
        codes = torch.div(x, self.scale).add_(self.zero_point).round_().clamp_(self.low, self.high)
        return codes.sub_(self.low).to(torch.int32)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """s·(code + l − z), in the order of ``infer``'s operations."""
        return (codes + self.low).to(torch.float32).sub_(self.zero_point).mul_(self.scale)

    def to_dict(self) -> dict[str, Any]:
        """Scales and zero points as nested lists; JSON stores a float32 exactly."""
        zero = None if self.symmetric else self.zero_point.tolist()
        scale = {"scale": self.scale.tolist(), "zero_point": zero}
        return {"kind": self.kind, "bits": self.bits, "signed": self.signed, **scale}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> UniformQuantizer:
        """The quantizer with the values of ``to_dict``."""
        zero = None if data["zero_point"] is None else torch.tensor(data["zero_point"], dtype=torch.float32)
        return cls(torch.tensor(data["scale"], dtype=torch.float32), zero, data["bits"], data["signed"])

    def describe(self) -> str:
        """For example ``uniform int4 ×192``: the integers, and the number of scales if there are several."""
        several = f" ×{self.scale.numel()}" if self.scale.numel() > 1 else ""
        float_zero = " float zero" if bool((self.zero_point != self.zero_point.round()).any()) else ""
        asymmetric = "" if self.symmetric else " asymmetric"
        return f"uniform {'int' if self.signed else 'uint'}{self.bits}{asymmetric}{float_zero}{several}"
