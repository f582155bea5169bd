"""What the tests of smoothings share: a block to fold into, whole models smoothed in place, and the loss at 4 bits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from plugin_toys import calibrated, real_images, real_model
from torch import Tensor, nn

from qplug.core.types import Granularity, NormGroup, QuantSpec, Smoothing
from qplug.hooks.caller import TechniqueCaller
from qplug.hooks.registry import installed
from qplug.models.equivalence import EquivalenceCheck
from qplug.pipeline.stages.smooth import smooth_groups
from qplug.quantization.calibration.statistics import SiteStats
from qplug.recipe.schema import Quantize

W4 = QuantSpec(4, Granularity.PER_CHANNEL)
A4 = QuantSpec(4)

VIT = [f"blocks.{i}.{norm}" for i in (0, 1) for norm in ("norm1", "norm2")]
SWIN = [
    *("layers.0.blocks.0.norm1", "layers.0.blocks.0.norm2", "layers.0.blocks.1.norm1", "layers.0.blocks.1.norm2"),
    *("layers.1.downsample.norm", "layers.1.blocks.0.norm1", "layers.1.blocks.0.norm2"),
]
"""The norms that only linears read, of the toys."""


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    """A norm that two linears read, one of them without bias."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.first, self.second = nn.Linear(channels, 5), nn.Linear(channels, 4, bias=False)
        with torch.no_grad():
            self.norm.weight.copy_(randn(channels).exp() * 3)
            self.norm.bias.copy_(randn(channels, seed=1) * 2)
            self.first.weight.copy_(randn(5, channels, seed=2))
            self.second.weight.copy_(randn(4, channels, seed=3) * 4)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return torch.cat([self.first(y), self.second(y)], dim=-1)

    def group(self, weight: QuantSpec | None = W4, input_: QuantSpec | None = A4) -> NormGroup:
        weights = (self.first.weight, self.second.weight)
        return NormGroup("norm", ("first", "second"), weights, (weight, weight), input_)


def alone(weight: Tensor, input_: QuantSpec | None = A4) -> NormGroup:
    """A norm that one linear of ``weight`` reads."""
    return NormGroup("norm", ("fc1",), (weight,), (W4,), input_)


def planted(spread: float = 1.0, offset: float = 1.0) -> tuple[Tensor, Tensor]:
    """(4, 30, 8) whose channels differ in size by 10^(2·spread) and lie ``offset`` sizes off zero; a weight (6, 8)."""
    y = (randn(4, 30, 8) + offset * randn(8, seed=5)) * torch.logspace(-spread, spread, 8)
    return y, randn(6, 8, seed=1)


def loss_at_4_bits(stats: SiteStats, weight: Tensor, smoothing: Smoothing | None = None) -> float:
    """Σ(Ô − O)² of the linear in min-max ranges, symmetric, per tensor and per channel, after ``smoothing``."""
    none = Smoothing(torch.zeros(weight.shape[1]), torch.ones(weight.shape[1]))
    smoothing = smoothing or none
    moved, folded = (stats.sample - smoothing.shift) / smoothing.scale, weight * smoothing.scale
    step_x, step_w = moved.abs().max() / 7, folded.abs().amax(1, keepdim=True) / 7
    out = (moved / step_x).round() * step_x @ ((folded / step_w).round() * step_w).T + weight @ smoothing.shift
    return float((out - stats.sample @ weight.T).square().sum())


def moved_by(now: Tensor, before: Tensor) -> float:
    """‖now − before‖ / ‖before‖."""
    return float((now - before).detach().norm() / before.norm())


def moved(model: nn.Module, before: nn.Module, images: Tensor) -> float:
    """``moved_by`` of two models' outputs."""
    with torch.no_grad():
        return moved_by(model(images), before(images))


def smoothed(model: nn.Module, images: Tensor, *techniques: Any, **quantize: Any) -> list[str]:
    """Smooth ``model`` in place, at 4 bits unless ``quantize`` says otherwise; the norms that changed, step by step."""
    from qplug.pipeline.specs import resolve

    found, calibration = calibrated(model, images)
    section = {"weights": {"bits": 4}, "activations": {"bits": 4}, **quantize}
    specs = resolve(Quantize.model_validate(section), found.sites)
    steps = TechniqueCaller(list(techniques), installed(), seed=0)
    return [
        c.where for c in smooth_groups(model, steps, calibration, found, specs, EquivalenceCheck(model, images[:4]))
    ]


def smoothed_real(shared: Path, name: str, *techniques: Any, **quantize: Any) -> tuple[list[str], float]:
    """A real model smoothed on 32 images: the norms that changed, and how far 16 others move its output."""
    source = real_model(shared, name)
    transform = source.preprocessing.transform()
    before = copy.deepcopy(source.module)
    changed = smoothed(source.module, real_images(shared, "calib", 32, transform), *techniques, **quantize)
    return changed, moved(source.module, before, real_images(shared, "dev", 16, transform))
