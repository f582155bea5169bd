"""The embedded models: architectures small enough that their weights travel in the wheel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from qplug.models import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Entry:
    """An embedded model: its architecture, its preprocessing, and how long ``qplug zoo train`` trains it."""

    build: Callable[[], nn.Module]
    preprocessing: Preprocessing
    epochs: int


def vit_digits() -> nn.Module:
    """timm's plain ``VisionTransformer`` for 8×8 grey digits: 17 tokens, 64 channels, 4 blocks, 169,162 parameters.

    Its embedded checkpoint has 98.16 % top-1 on the 599 digits that training never saw. It was made by
    ``qplug zoo train vit_digits --out …`` (seed 0, 300 epochs), in 162 seconds on one core.
    """
    from timm.models import VisionTransformer

    model: nn.Module = VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=64, depth=4, num_heads=4, mlp_ratio=3.0
    )
    return model


ZOO: dict[str, Entry] = {
    "vit_digits": Entry(
        build=vit_digits,
        preprocessing=Preprocessing(
            input_size=(1, 8, 8), mean=(0.305,), std=(0.376,), interpolation="bilinear", crop_pct=1.0
        ),
        epochs=300,
    ),
}


def checkpoint(name: str) -> bytes:
    """The embedded checkpoint, a safetensors file."""
    return (files("qplug.models") / "weights" / f"{name}.safetensors").read_bytes()


def weights(name: str) -> dict[str, Tensor]:
    """The embedded checkpoint's state dict, float32."""
    from safetensors.torch import load

    state: dict[str, Tensor] = load(checkpoint(name))
    return state
