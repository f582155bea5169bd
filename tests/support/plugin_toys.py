"""Sites with statistics made by hand, toy models, and the real ones, for the tests of techniques."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qplug.core.types import QuantSpec, Site, SiteKind
from qplug.data.loading import batches
from qplug.hooks.registry import installed
from qplug.models.adapters import ADAPTERS, make_explicit
from qplug.quantization.calibration.calibrator import Calibration
from qplug.quantization.calibration.product import Product
from qplug.quantization.calibration.statistics import SiteStats
from qplug.quantization.choice import QuantizerChoice
from qplug.quantization.sites import SiteMap, find_sites
from qplug.testing.toys import randomize

REAL = ("vit_tiny_patch16_224", "deit_tiny_patch16_224")


def make(technique: type, **parameters: Any) -> Any:
    """The technique with these parameters."""
    return technique(technique.Config(use=technique.name(), **parameters))


def activation(
    x: Tensor, weight: Tensor | None = None, importance: Tensor | None = None, kind: SiteKind = SiteKind.LINEAR_INPUT
) -> tuple[Site, SiteStats]:
    """x (images, tokens, C), read by a linear of ``weight`` (M, C); importance (images·tokens, M)."""
    site = Site("layer.input", kind, "layer", "input", tuple(x.shape[1:]))
    stats = SiteStats.from_tensor(x, site)
    if weight is not None:
        stats.product = Product(
            stats.sample.unsqueeze(0), weight.unsqueeze(0), None if importance is None else importance.unsqueeze(0)
        )
        stats.to_matrix = lambda t: t.unsqueeze(0)
    return site, stats


def uncounted(*_: Any) -> dict[str, float]:
    """For tables of allocators that do not ask what a model costs."""
    raise AssertionError("asked for costs")


def weight_site(weight: Tensor, x: Tensor, importance: Tensor | None = None) -> tuple[Site, SiteStats]:
    """weight (M, C), reading rows x (n, C); importance (n, M)."""
    site = Site("layer.weight", SiteKind.LINEAR_WEIGHT, "layer", "weight", tuple(weight.shape), channel_axis=0)
    stats = SiteStats.from_tensor(weight, site)
    stats.product = Product(
        x.unsqueeze(0), weight.unsqueeze(0), None if importance is None else importance.unsqueeze(0)
    )
    stats.to_matrix = lambda t: t.unsqueeze(0)
    return site, stats


def choose(technique: Any, pair: tuple[Site, SiteStats], spec: QuantSpec) -> QuantizerChoice | None:
    """What the technique makes of a site."""
    site, stats = pair
    return technique.qplug_make_quantizer(site=site, spec=spec, stats=stats)


def oracle(x: Any, scale: Any, zero: Any, low: int, high: int) -> Any:
    """x̂ = s·(clamp(round(x/s + z), l, h) − z) in float64 (Eq. 2, 3)."""
    x, scale, zero = (np.asarray(v, dtype=np.float64) for v in (x, scale, zero))
    return scale * (np.clip(np.round(x / scale + zero), low, high) - zero)


def gelu_data(images: int = 8, tokens: int = 24, channels: int = 32, spread: float = 2.5, seed: int = 0) -> Tensor:
    """Post-GELU values: a narrow negative side, a long positive tail."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, tokens, channels, generator=generator)
    return nn.functional.gelu(x * torch.exp(0.7 * torch.randn(channels, generator=generator)) * spread - 1.0)


def toy_swin() -> nn.Module:
    """timm's ``SwinTransformer``: 8×8 patches, shifted windows, and a patch merging whose reduction has no bias."""
    from timm.models import SwinTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = SwinTransformer(
            img_size=16, patch_size=2, window_size=4, embed_dim=8, depths=(2, 1), num_heads=(2, 2), num_classes=5
        )
        randomize(model)
    return model.eval().requires_grad_(False)


def toy_deit() -> nn.Module:
    """timm's ``VisionTransformerDistilled``: two tokens, two heads, averaged."""
    from timm.models.deit import VisionTransformerDistilled

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = VisionTransformerDistilled(
            img_size=16, patch_size=8, num_classes=5, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0
        )
        randomize(model)
    return model.eval().requires_grad_(False)


def calibrated(model: nn.Module, images: Tensor) -> tuple[SiteMap, Calibration]:
    """Make attention explicit in place, find sites, and show the images."""
    make_explicit(model, ADAPTERS, images[:1])
    found = find_sites(model, images[:1])
    calibration = Calibration(model, found.sites, len(images), seed=0)
    calibration.collect(images.split(8), "cross_entropy")
    return found, calibration


def real_images(shared: Path, split: str, count: int, transform: Any) -> Tensor:
    """``count`` images of the ImageNet sample, drawn by seed 0."""
    source = installed().datasets["folder"]
    folder = shared / "data" / "imagenet_sample"
    config = source.Config(
        source="folder", path=str(folder / split), class_map=str(folder / "class_map.txt"), images=count
    )
    return next(batches(source(config).open(0), transform, count))[0]


def real_model(shared: Path, name: str) -> Any:
    """A ``FloatModel`` with the real weights."""
    source = installed().models["timm"]
    checkpoint = shared / "weights" / f"{name}.safetensors"
    return source(source.Config(source="timm", name=name, checkpoint_path=str(checkpoint))).load()


@lru_cache(maxsize=2)
def real_calibration(shared: Path, name: str) -> tuple[nn.Module, SiteMap, Calibration, Tensor]:
    """(model, sites, calibration on 32 images, 8 other images), for tests that do not change the model."""
    source = real_model(shared, name)
    transform = source.preprocessing.transform()
    model = source.module
    make_explicit(model, ADAPTERS, source.preprocessing.example())
    found = find_sites(model, source.preprocessing.example())
    images = real_images(shared, "calib", 32, transform)
    calibration = Calibration(model, found.sites, len(images), seed=0)
    calibration.collect(images.split(8), "cross_entropy")
    return model, found, calibration, real_images(shared, "dev", 8, transform)
