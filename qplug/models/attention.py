"""Attention with its matmuls and Softmax as modules, so that backends and statistics can find them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers.attention import resolve_self_attn_mask
from torch import Tensor, nn

DECODER = frozenset(("cache", "past_key_values", "encoder_hidden_states", "encoder_attention_mask"))
"""Arguments of transformers' attention that are ``None`` in an encoder."""


class MatMul(nn.Module):
    """``lhs @ rhs`` of attention: q @ kᵀ, or probabilities @ v; each operand (B, H, N, ·).

    Args:
        transpose_rhs: whether the right operand is (B, H, N, D) and is transposed here, so that its quantizer gets the
            same layout as those of other operands.
    """

    def __init__(self, transpose_rhs: bool = False) -> None:
        super().__init__()
        self.transpose_rhs = transpose_rhs

    def forward(self, lhs: Tensor, rhs: Tensor) -> Tensor:
        """(B, H, N, K) and (B, H, K, M), or (B, H, M, K) if ``transpose_rhs`` → (B, H, N, M)."""
        return torch.matmul(lhs, rhs.transpose(-2, -1) if self.transpose_rhs else rhs)


class MaskedSoftmax(nn.Softmax):
    """Softmax that adds a mask to its scores itself, so that the quantizer of the scores does not get the mask."""

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Scores of any shape, and a mask of 0 or ``MASKED`` that broadcasts to it."""
        return super().forward(input if mask is None else input + mask)


class ExplicitAttention(nn.Module):
    """timm's ``Attention`` with its two matmuls and its Softmax as modules; it reuses the original's submodules."""

    qkv: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    norm: nn.Module
    gate: nn.Module | None
    attn_drop: nn.Module
    proj: nn.Module
    proj_drop: nn.Module
    num_heads: int
    attn_dim: int
    scale: float

    def __init__(self, original: Any) -> None:
        super().__init__()
        for name, child in original.named_children():
            self.add_module(name, child)
        for name in ("num_heads", "head_dim", "attn_dim", "scale"):
            setattr(self, name, getattr(original, name))
        self.gate = original.gate  # the loop above omits it if it is None
        self.matmul_qk = MatMul(transpose_rhs=True)
        self.softmax = nn.Softmax(dim=-1)
        self.matmul_av = MatMul()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """x: (B, N, C) → (B, N, C)."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        scores = self.matmul_qk(q * self.scale, k)
        mask = resolve_self_attn_mask(tokens, scores, attn_mask, is_causal)
        scores = scores if mask is None else scores + mask
        out = self.matmul_av(self.attn_drop(self.softmax(scores)), v)
        out = self.norm(out.transpose(1, 2).reshape(batch, tokens, self.attn_dim))
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        result: Tensor = self.proj_drop(self.proj(out))
        return result


class ExplicitWindowAttention(nn.Module):
    """timm's Swin ``WindowAttention`` with its two matmuls as modules; its Softmax adds the mask of shifted windows."""

    qkv: nn.Module
    softmax: nn.Module
    attn_drop: nn.Module
    proj: nn.Module
    proj_drop: nn.Module
    num_heads: int
    scale: float
    window_area: int
    relative_position_bias_table: Tensor
    relative_position_index: Tensor

    def __init__(self, original: Any) -> None:
        super().__init__()
        for name, child in original.named_children():
            self.add_module(name, child)
        for name in ("num_heads", "scale", "window_area"):
            setattr(self, name, getattr(original, name))
        self.relative_position_bias_table = original.relative_position_bias_table
        self.register_buffer("relative_position_index", original.relative_position_index, persistent=False)
        self.matmul_qk = MatMul(transpose_rhs=True)
        self.softmax = MaskedSoftmax(dim=-1)
        self.matmul_av = MatMul()

    def position_bias(self) -> Tensor:
        """The relative position bias, (1, H, N, N)."""
        index = self.relative_position_index.view(-1)
        bias = self.relative_position_bias_table[index].view(self.window_area, self.window_area, -1)
        return bias.permute(2, 0, 1).contiguous().unsqueeze(0)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: (windows·B, N, C); mask: (windows, N, N) or None → (windows·B, N, C)."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = self.matmul_qk(q * self.scale, k) + self.position_bias()
        if mask is not None:
            mask = mask.repeat(batch // len(mask), 1, 1).unsqueeze(1)  # the windows of an image are adjacent
        weights = self.softmax(scores) if mask is None else self.softmax(scores, mask)
        out = self.matmul_av(self.attn_drop(weights), v)
        result: Tensor = self.proj_drop(self.proj(out.transpose(1, 2).reshape(batch, tokens, -1)))
        return result


class ExplicitSelfAttention(nn.Module):
    """transformers' self-attention of BERT and DistilBERT with its two matmuls and its Softmax as modules.

    The linears keep the names of the original: query, key, value, and the output if the original contains it.
    """

    def __init__(self, original: Any, linears: Sequence[str]) -> None:
        super().__init__()
        self._linears = tuple(linears)
        for name in self._linears:
            self.add_module(name, original.get_submodule(name))
        self.head_size, self.scale = original.attention_head_size, original.scaling
        self.dropout = original.dropout
        self.matmul_qk = MatMul(transpose_rhs=True)
        self.softmax = MaskedSoftmax(dim=-1)
        self.matmul_av = MatMul()

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **others: Any
    ) -> tuple[Tensor, None]:
        """hidden_states: (B, N, C); attention_mask: 0 or ``MASKED``, broadcasts to (B, H, N, N) → (B, N, C), None.

        Raises ``ValueError`` for the arguments of a decoder.
        """
        unsupported = [name for name, value in others.items() if name in DECODER and value is not None]
        if unsupported:
            raise ValueError(
                f"expected the arguments of an encoder's attention, received a decoder's: {', '.join(unsupported)}"
            )
        project, *rest = (self.get_submodule(name) for name in self._linears)
        shape = (*hidden_states.shape[:-1], -1, self.head_size)
        q, k, v = (linear(hidden_states).view(shape).transpose(1, 2) for linear in (project, *rest[:2]))
        weights = self.softmax(self.matmul_qk(q, k) * self.scale, attention_mask)
        out = self.matmul_av(self.dropout(weights), v).transpose(1, 2).flatten(2)
        for linear in rest[2:]:
            out = linear(out)
        return out, None
