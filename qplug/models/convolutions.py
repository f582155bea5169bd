"""Conversions of convolutions of sequences, and of transposed ones, to ``nn.Conv2d``."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from qplug.models.layers import Pad2d


class SequenceToImage(nn.Module):
    """A sequence as an image of one row."""

    def forward(self, x: Tensor) -> Tensor:
        """x: ([B,] C, L) → ([B,] C, 1, L)."""
        return x.unsqueeze(-2)


class ImageToSequence(nn.Module):
    """The only row of an image."""

    def forward(self, x: Tensor) -> Tensor:
        """x: ([B,] C, 1, L) → ([B,] C, L)."""
        return x.squeeze(-2)


def sequence_conv(original: nn.Conv1d) -> nn.Sequential:
    """A replacement of ``nn.Conv1d`` by ``conv`` between two views, with its weights and bias."""
    (kernel,), (stride,), (dilation,) = original.kernel_size, original.stride, original.dilation
    padding = original.padding if isinstance(original.padding, str) else (0, original.padding[0])
    conv = nn.Conv2d(
        original.in_channels,
        original.out_channels,
        (1, kernel),
        (1, stride),
        padding,
        (1, dilation),
        original.groups,
        original.bias is not None,
        original.padding_mode,
        device="meta",
    )
    conv.weight = _parameter(original.weight.unsqueeze(-2), original.weight)
    conv.bias = original.bias
    return nn.Sequential(OrderedDict(image=SequenceToImage(), conv=conv, sequence=ImageToSequence()))


def transposed_conv(original: nn.ConvTranspose2d) -> nn.Sequential | None:
    """A replacement of ``nn.ConvTranspose2d`` by ``conv``, whose channels become pixels; ``None`` if there is none.

    Stride s spreads the inputs, so that each of the s·s pixels between them reads every s-th weight of the kernel. With
    a kernel of s·m weights a side, a convolution with m weights a side makes these pixels as s·s channels each
    (Shi et al., Real-Time Single Image and Video Super-Resolution, 2016). It has the same weights, each once.

    The stride must be that of both sides and divide the kernel's sides; dilation is 1, and the output is not padded
    beyond the kernel's reach.
    """
    (stride, other), sides = original.stride, original.kernel_size
    padding, more = _pair(original.padding), _pair(original.output_padding)
    if stride != other or any(side % stride for side in sides) or any(d != 1 for d in original.dilation):
        return None
    if any(extra > side for side, extra in zip(padding, more, strict=True)):
        return None
    rows, columns = (side // stride for side in sides)
    weight = original.weight.unflatten(0, (original.groups, -1)).unflatten(3, (rows, stride)).unflatten(5, (-1, stride))
    weight = weight.permute(0, 2, 4, 6, 1, 3, 5).flatten(0, 3).flip(-2, -1)
    channels = len(weight)
    conv = nn.Conv2d(
        original.in_channels,
        channels,
        (rows, columns),
        groups=original.groups,
        bias=original.bias is not None,
        device="meta",
    )
    conv.weight = _parameter(weight, original.weight)
    if original.bias is not None:
        conv.bias = _parameter(original.bias.repeat_interleave(stride * stride), original.bias)
    pad = Pad2d([columns - 1, columns - 1, rows - 1, rows - 1], "constant")
    (top, left), (bottom, right) = padding, (side - extra for side, extra in zip(padding, more, strict=True))
    crop = Pad2d([-left, -right, -top, -bottom], "constant")
    return nn.Sequential(OrderedDict(pad=pad, conv=conv, pixels=nn.PixelShuffle(stride), crop=crop))


def _pair(sizes: tuple[int, ...] | str) -> tuple[int, int]:
    assert not isinstance(sizes, str)  # torch refuses words for transposed convolutions
    rows, columns = sizes
    return rows, columns


def _parameter(value: Tensor, original: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format), original.requires_grad)
