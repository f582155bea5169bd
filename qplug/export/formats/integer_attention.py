"""Attention with queries, keys and values as integers, from the product that computes them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qplug.export.formats.affine import Affine
from qplug.export.formats.integer_products import Codes, IntegerLinear, Values
from qplug.export.formats.integers import eight_bits
from qplug.export.formats.operations import LoweredMatMul
from qplug.models.attention import ExplicitAttention
from qplug.models.surgery import replace
from qplug.quantization.plan import Plan


class IntegerHeads(nn.Module):
    """A product's outputs as integers, which are moved to (B, H, N, D) or (B, H, D, N) and then dequantized."""

    def __init__(self, product: nn.Module, affine: Affine, heads: int, transposed: bool) -> None:
        super().__init__()
        self.product, self.heads = product, heads
        self.order = (0, 2, 3, 1) if transposed else (0, 2, 1, 3)
        self.codes, self.values = Codes(affine), Values(affine)

    def forward(self, codes: Tensor) -> Tensor:
        """(B, N, I) integers → (B, H, N, D) or (B, H, D, N) float32."""
        out = self.codes(self.product(codes))
        moved: Tensor = self.values(out.reshape(*out.shape[:2], self.heads, -1).permute(self.order))
        return moved


class IntegerAttention(nn.Module):
    """``ExplicitAttention`` with ``qkv`` as three products of the same integers.

    The scale of the first product includes the query's factor.
    """

    qkv: nn.Module
    softmax: nn.Module
    matmul_av: LoweredMatMul
    proj: nn.Module

    def __init__(self, original: ExplicitAttention, operands: tuple[Affine, Affine, Affine]) -> None:
        super().__init__()
        for name, child in original.named_children():
            self.add_module(name, child)
        qkv, width, heads = self.qkv, original.attn_dim, original.num_heads
        assert isinstance(qkv, IntegerLinear)
        factors = (original.scale, 1.0, 1.0)
        self.parts = nn.ModuleList(
            IntegerHeads(qkv.product.part(i * width, (i + 1) * width, factor), affine, heads, i == 1)
            for i, (factor, affine) in enumerate(zip(factors, operands, strict=True))
        )
        self.attn_dim = width

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """x: (B, N, C) → (B, N, C). Raises ``ValueError`` for a mask; encoders of images pass none."""
        if attn_mask is not None or is_causal:
            raise ValueError("expected no attention mask in onnx-integer, received one; export to onnx-qdq")
        assert isinstance(self.qkv, IntegerLinear)
        codes = self.qkv.codes(x)
        q, k, v = (part(codes) for part in self.parts)
        probabilities = self.matmul_av.lhs(self.softmax(torch.matmul(q, k)))
        out = torch.matmul(probabilities, v)
        out = out.transpose(1, 2).reshape(*x.shape[:2], self.attn_dim)
        result: Tensor = self.proj(out)
        return result


MERGED = ("qkv", "matmul_qk", "matmul_av")
"""Operations of an attention that its integer form merges, so that they have no calls."""


def integer_heads(lowered: nn.Module, plan: Plan) -> dict[str, list[str]]:
    """Replace every attention of a lowered model by its integer form if its operands allow this, in place.

    Returns:
        Path of ``proj`` → the merged operations. Their results are compared in the input of ``proj`` alone.
    """
    joined: dict[str, list[str]] = {}
    decided = {decision.site.name: decision for decision in plan}
    for path, module in list(lowered.named_modules()):
        if type(module) is not ExplicitAttention or not _is_plain(module):
            continue
        sites = (("matmul_qk.lhs", False), ("matmul_qk.rhs", True), ("matmul_av.rhs", True))
        q, k, v = (eight_bits(decided.get(f"{path}.{name}"), signed) for name, signed in sites)
        if q and k and v:
            replace(lowered, module, IntegerAttention(module, (q, k, v)).eval())
            joined[f"{path}.proj"] = [f"{path}.{name}" for name in MERGED]
    return joined


def _is_plain(attention: ExplicitAttention) -> bool:
    between = (attention.q_norm, attention.k_norm, attention.norm)
    return (
        isinstance(attention.qkv, IntegerLinear)
        and attention.gate is None
        and all(isinstance(module, nn.Identity) for module in between)
    )
