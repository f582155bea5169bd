"""torch's ``nn.MultiheadAttention`` with projections, matmuls and Softmax as modules of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qplug.models.attention import MaskedSoftmax, MatMul
from qplug.models.layers import linear

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class ExplicitMultiheadAttention(nn.Module):
    """``nn.MultiheadAttention``, for self- and cross-attention, whose operations are modules.

    torch's class calls fused kernels with its weights as arguments. This one calls three linears, two matmuls, a
    Softmax and a fourth linear, in every mode. They get tensors with the batch as the first axis, whatever
    ``batch_first`` says.

    Attributes:
        in_proj_weight, in_proj_bias, _qkv_same_embed_dim: ``None`` and ``False``. ``nn.TransformerEncoderLayer`` reads
            them, and then takes no fused path either.
    """

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.kdim, self.vdim = original.embed_dim, original.kdim, original.vdim
        self.num_heads, self.head_dim = original.num_heads, original.head_dim
        self.batch_first, self.add_zero_attn = original.batch_first, original.add_zero_attn
        self.in_proj_weight = self.in_proj_bias = None
        self._qkv_same_embed_dim = False
        for name, projection in zip(PROJECTIONS, _projections(original), strict=True):
            self.add_module(name, projection)
        self.bias_k, self.bias_v = original.bias_k, original.bias_v
        self.matmul_qk = MatMul(transpose_rhs=True)
        self.softmax = MaskedSoftmax(dim=-1)
        self.attn_drop = nn.Dropout(original.dropout)
        self.matmul_av = MatMul()
        self.out_proj = linear(original.out_proj)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Arguments and results of ``nn.MultiheadAttention``.

        Args:
            query: (B, L, E), (L, B, E) if not ``batch_first``, or (L, E).
            key, value: (B, S, ·), (S, B, ·) if not ``batch_first``, or (S, ·).
            key_padding_mask: (B, S) or (S,); ``True`` masks a key, and floats are added to the scores.
            need_weights: whether the weights are returned too.
            attn_mask: (L, S) or (B·H, L, S), as ``key_padding_mask``.
            average_attn_weights: whether the returned weights are means over heads.
            is_causal: whether ``attn_mask`` is the causal mask.

        Returns:
            The output, of the shape of ``query``; the weights, (B, L, S) or (B, H, L, S), or ``None``.
        """
        batched = query.dim() == 3
        q, k, v = (self._batch_first(x, batched) for x in (query, key, value))
        batch = q.shape[0]  # not len: torch.export would take it for a constant
        if is_causal and attn_mask is None:
            raise ValueError("is_causal says that attn_mask is the causal mask, and attn_mask is None")
        q, k, v = (self.get_submodule(name)(x) for name, x in zip(PROJECTIONS, (q, k, v), strict=True))
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(batch, 1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(batch, 1, -1)], 1)
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        if is_causal and key_padding_mask is None and not need_weights:  # torch's class then ignores attn_mask
            attn_mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
        mask = self._mask(attn_mask, key_padding_mask, k)
        scores = self.matmul_qk(q * self.head_dim**-0.5, k)
        weights = self.attn_drop(self.softmax(scores) if mask is None else self.softmax(scores, mask))
        out = self.out_proj(self.matmul_av(weights, v).transpose(1, 2).flatten(2))
        weights = weights.mean(1) if average_attn_weights else weights
        if not batched:
            return out.squeeze(0), weights.squeeze(0) if need_weights else None
        return out if self.batch_first else out.transpose(0, 1), weights if need_weights else None

    def _batch_first(self, x: Tensor, batched: bool) -> Tensor:
        if not batched:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, k: Tensor) -> Tensor | None:
        """The sum of both masks, as floats that broadcast to (B, H, L, S); keys that were added are not masked."""
        masks = []
        if attn_mask is not None:
            mask = _additive(attn_mask, k)
            masks.append(mask.view(-1, self.num_heads, *mask.shape[-2:]) if mask.dim() == 3 else mask)
        if key_padding_mask is not None:
            masks.append(_additive(key_padding_mask, k).view(k.shape[0], 1, 1, -1))
        padded = [F.pad(mask, (0, k.shape[-2] - mask.shape[-1])) for mask in masks]
        return sum(padded[1:], padded[0]) if padded else None


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as floats to add: a boolean one as 0 and −∞."""
    if mask.is_floating_point():
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask.bool(), float("-inf"))


def _projections(original: nn.MultiheadAttention) -> list[nn.Linear]:
    """Linears of queries, keys and values, with weights and biases of their own."""
    if original.in_proj_weight is not None:
        weights = list(original.in_proj_weight.chunk(3))
    else:
        weights = [original.q_proj_weight, original.k_proj_weight, original.v_proj_weight]
    biases = [None] * 3 if original.in_proj_bias is None else list(original.in_proj_bias.chunk(3))
    made = []
    for weight, bias in zip(weights, biases, strict=True):
        projection = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        projection.weight = _parameter(weight)
        projection.bias = None if bias is None else _parameter(bias)
        made.append(projection)
    return made


def _parameter(part: Tensor) -> nn.Parameter:
    """A copy, as a part of a tensor would be saved with all of it."""
    return nn.Parameter(part.detach().clone(), requires_grad=part.requires_grad)
