"""A toy model, toy images, and the statistics of the one on the other."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from qplug.core.types import Granularity, NormGroup, QuantSpec, Site
from qplug.models.adapters import ADAPTERS, make_explicit
from qplug.quantization.calibration.calibrator import Calibration
from qplug.quantization.calibration.statistics import SiteStats
from qplug.quantization.sites import SiteMap, find_sites

SIZE = (3, 16, 16)
"""(C, H, W) of a toy image."""
CLASSES = 5


def toy_vit() -> nn.Module:
    """timm's ``VisionTransformer`` with 2 blocks of 16 channels, random but always the same; eval mode, float32.

    The gains and offsets of its norms differ widely between channels, as those of trained transformers do: there is
    something to smooth, and a per-tensor range has outliers.
    """
    from timm.models import VisionTransformer

    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        model: nn.Module = VisionTransformer(
            img_size=SIZE[1], patch_size=8, num_classes=CLASSES, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0
        )
        randomize(model)
    finally:
        torch.random.set_rng_state(state)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Draw the weights of ``model`` in place, from torch's global generator.

    Gains and offsets of norms (parameters with "norm" in their name) differ widely between channels.
    """
    for name, parameter in model.named_parameters():
        if "norm" in name:
            spread = torch.randn_like(parameter)
            parameter.copy_(spread.exp() if name.endswith("weight") else spread)
        elif parameter.dim() > 1:
            parameter.copy_(torch.randn_like(parameter) * 0.4)


def toy_images(count: int = 4, seed: int = 0) -> Tensor:
    """(count, 3, 16, 16) float32 from a standard normal distribution, the same at every call."""
    return torch.randn((count, *SIZE), generator=torch.Generator().manual_seed(seed))


@lru_cache(maxsize=1)
def calibrated_toy() -> tuple[nn.Module, SiteMap, Calibration]:
    """``toy_vit`` with its attention explicit, its sites, and their statistics over ``toy_images()``."""
    model, images = toy_vit(), toy_images()
    make_explicit(model, ADAPTERS, images[:1])
    found = find_sites(model, images[:1])
    calibration = Calibration(model, found.sites, len(images), seed=0)
    calibration.collect([images], "cross_entropy")
    return model, found, calibration


def toy_calibration() -> list[tuple[Site, SiteStats]]:
    """Every site of ``toy_vit`` with its statistics over ``toy_images()``, samples and gradients included."""
    _, found, calibration = calibrated_toy()
    return [(site, calibration.stats(site)) for site in found.sites]


def toy_groups() -> list[tuple[NormGroup, SiteStats]]:
    """Every norm of ``toy_vit`` that only linears read, with the statistics of its output."""
    model, found, calibration = calibrated_toy()
    inputs = {site.name: site for site in found.sites}
    specs = {
        site.name: QuantSpec(4, Granularity.PER_CHANNEL if site.kind.is_weight else Granularity.PER_TENSOR)
        for site in found.sites
    }
    groups = found.norm_groups(model, specs)
    return [(group, calibration.stats(inputs[f"{group.linears[0]}.input"])) for group in groups]
