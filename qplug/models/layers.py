"""Conversions of timm's variants of convolutions and linears to ``nn.Conv2d`` and ``nn.Linear``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from qplug.models.effective_weight import weight_of


class SamePad2d(nn.Module):
    """Zero padding of an image as TensorFlow's ``SAME``: it depends on the image size, and the larger half is last.

    An axis of n pixels is padded by max((⌈n/stride⌉ − 1)·stride + (kernel − 1)·dilation + 1 − n, 0) pixels.

    Args:
        kernel_size, stride, dilation: those of the convolution that follows, (height, width) in pixels.
    """

    def __init__(self, kernel_size: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation

    def extra_repr(self) -> str:
        """Kernel size, stride and dilation, for ``repr``."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}"

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) → (B, C, H + rows, W + columns)."""
        axes = zip(x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True)
        rows, columns = (max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0) for n, k, s, d in axes)
        return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def padded_conv(original: nn.Conv2d) -> nn.Sequential:
    """A replacement of timm's ``Conv2dSame`` by ``pad`` and ``conv``, with its parameters."""
    conv = nn.Conv2d(
        original.in_channels,
        original.out_channels,
        (original.kernel_size[0], original.kernel_size[1]),
        (original.stride[0], original.stride[1]),
        dilation=(original.dilation[0], original.dilation[1]),
        groups=original.groups,
        bias=original.bias is not None,
        device="meta",
    )
    pad = SamePad2d(original.kernel_size, original.stride, original.dilation)
    return nn.Sequential(OrderedDict(pad=pad, conv=_with_parameters(conv, original)))


def standardized_conv(original: Any) -> nn.Module:
    """A replacement of timm's weight-standardized convolutions by ``conv`` with the weight as it is in eval mode.

    A ``pad`` is before it where timm pads by the image size. ScaledStdConv's gain becomes part of the weight.
    """
    weight = original.weight
    conv = weight_of(original, weight.new_zeros(1, original.in_channels, *weight.shape[2:]))
    if not getattr(original, "same_pad", False):
        return conv
    pad = SamePad2d(original.kernel_size, original.stride, original.dilation)
    return nn.Sequential(OrderedDict(pad=pad, conv=conv))


class Pad2d(nn.Module):
    """Padding of an image by fixed sizes.

    Args:
        sizes: left, right, top and bottom, in pixels; negative sizes cut.
        mode: as ``torch.nn.functional.pad`` takes it.
    """

    def __init__(self, sizes: Sequence[int], mode: str) -> None:
        super().__init__()
        self.sizes, self.mode = list(sizes), mode

    def extra_repr(self) -> str:
        """Sizes and mode, for ``repr``."""
        return f"{self.sizes}, mode={self.mode!r}"

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) → (B, C, H + top + bottom, W + left + right)."""
        return F.pad(x, self.sizes, self.mode)


def blur(original: Any) -> nn.Module | None:
    """A replacement of timm's ``BlurPool2d`` by ``pad`` and a depthwise ``conv``; ``None`` without a channel count."""
    if original.channels is None:
        return None
    conv = nn.Conv2d(
        original.channels,
        original.channels,
        original.filt_size,
        original.stride,
        groups=original.channels,
        bias=False,
        device="meta",
    )
    conv.weight = nn.Parameter(original.filt.detach().clone(), requires_grad=False)
    return nn.Sequential(OrderedDict(pad=Pad2d(original.padding, original.pad_mode), conv=conv))


def linear(original: nn.Linear) -> nn.Linear:
    """A replacement of an equivalent subclass of ``nn.Linear`` by ``nn.Linear``, with its parameters."""
    plain = nn.Linear(original.in_features, original.out_features, original.bias is not None, device="meta")
    _with_parameters(plain, original)
    return plain


def _with_parameters(module: Any, original: Any) -> nn.Module:
    """``module``, built on the meta device, with the parameters of ``original``."""
    module.weight, module.bias = original.weight, original.bias
    result: nn.Module = module
    return result
