"""Swin of timm with the feature pyramid of torchvision, as MMDetection's detectors have them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from timm import create_model
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool


class PaddedSwinBlock(SwinTransformerBlock):  # type: ignore[misc]  # timm has no types
    """A Swin block that pads before the cyclic shift, as MMDetection's.

    timm shifts first. Both are equal only if height and width are multiples of the window.
    """

    def _attn(self, x: Tensor) -> Tensor:
        """x: (B, H, W, C) → (B, H, W, C)."""
        height, width = x.shape[1:3]
        rows, columns = self.window_size
        padded = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        out: Tensor = super()._attn(padded)[:, :height, :width]
        return out.contiguous()


class SwinFPN(nn.Module):
    """The backbone of a detector: images to five feature maps of strides 4, 8, 16, 32 and 64.

    ``body`` is timm's Swin with ``features_only``: windows are always full and shifted, whatever the size of the image.
    A LayerNorm for each of its four outputs follows, then torchvision's pyramid, whose fifth level is every second
    position of the fourth.
    """

    def __init__(self, swin: str, channels: int, overrides: Mapping[str, Any] | None = None) -> None:
        """Build ``swin`` of timm, with ``overrides`` of its arguments, and a pyramid of ``channels`` channels."""
        super().__init__()
        self.body = create_model(
            swin,
            pretrained=False,
            features_only=True,
            out_indices=(0, 1, 2, 3),
            dynamic_img_size=True,
            always_partition=True,
            **{"drop_path_rate": 0.0, **(overrides or {})},
        )
        for block in self.body.modules():
            if isinstance(block, SwinTransformerBlock):
                block.__class__ = PaddedSwinBlock
        widths = self.body.feature_info.channels()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.fpn = FeaturePyramidNetwork(widths, channels, LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images: (B, 3, H, W) float32, H and W multiples of 32 → five maps (B, channels, h, w)."""
        maps: OrderedDict[str, Tensor] = OrderedDict()
        for index, (norm, out) in enumerate(zip(self.norms, self.body(images), strict=True)):
            maps[str(index)] = norm(out).permute(0, 3, 1, 2).contiguous()
        pyramid: dict[str, Tensor] = self.fpn(maps)
        return pyramid
