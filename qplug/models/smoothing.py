"""Folding of a smoothing into a norm and the linears that read it, without changing the model's function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qplug.core.errors import PluginError
from qplug.core.types import NormGroup, Smoothing


@torch.no_grad()
def fold(model: nn.Module, group: NormGroup, smoothing: Smoothing) -> None:
    """gamma' = gamma/scale, beta' = (beta − shift)/scale, W' = W·diag(scale), b' = b + W·shift (MPTQ-ViT, Eq. 4, 5).

    The parameters are computed in float64 and written back in their own dtype, in place. Missing ones (a norm without
    affine parameters, a linear without bias) are created.

    Raises:
        PluginError: the shape of shift or scale is not the norm's, or the scale is not positive and finite.
    """
    norm: Any = model.get_submodule(group.norm)
    channels = group.weights[0].shape[1]
    shift, scale = smoothing.shift, smoothing.scale
    if shift.shape != (channels,) or scale.shape != (channels,):
        raise PluginError(
            f"expected shift and scale of ({channels},), received {tuple(shift.shape)} and {tuple(scale.shape)}"
        )
    if not (torch.isfinite(shift).all() and torch.isfinite(scale).all() and (scale > 0).all()):
        raise PluginError("shift and scale must be finite, and scale positive")
    shift, scale = shift.double(), scale.double()
    gamma = norm.weight.double() if norm.weight is not None else torch.ones_like(scale)
    beta = norm.bias.double() if norm.bias is not None else torch.zeros_like(scale)
    first: Any = model.get_submodule(group.linears[0])
    like = first.weight
    _set(norm, "weight", gamma / scale, like)
    _set(norm, "bias", (beta - shift) / scale, like)
    for path in group.linears:
        linear: Any = model.get_submodule(path)
        weight = linear.weight.double()
        bias = linear.bias.double() if linear.bias is not None else weight.new_zeros(weight.shape[0])
        _set(linear, "bias", bias + weight @ shift, like)
        _set(linear, "weight", weight * scale, like)


def _set(module: nn.Module, name: str, value: Tensor, like: Tensor) -> None:
    existing = getattr(module, name)
    if existing is None:
        setattr(module, name, nn.Parameter(value.to(like.dtype), requires_grad=like.requires_grad))
    else:
        existing.copy_(value)
