"""Small random models of timm's classes, calibrations of them, and parts of recipes, for the numeric rooms."""

from __future__ import annotations

import torch
from torch import nn

from qplug.hooks.caller import TechniqueCaller
from qplug.hooks.registry import Plugin, Registry
from qplug.models.adapters import ADAPTERS, make_explicit
from qplug.quantization.calibration.calibrator import Calibration
from qplug.quantization.sites import find_sites
from qplug.recipe.schema import Quantize
from qplug.testing import toy_images, toy_vit


def vit(**more):
    from timm.models import VisionTransformer

    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
    return VisionTransformer(**{**sizes, **more}).eval()


def deit():
    from timm.models.deit import VisionTransformerDistilled

    torch.manual_seed(0)
    return VisionTransformerDistilled(
        img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=3, num_classes=5
    ).eval()


def swin():
    from timm.models import SwinTransformer

    torch.manual_seed(0)
    return SwinTransformer(
        img_size=32, patch_size=2, window_size=4, embed_dim=12, depths=(2, 2), num_heads=(2, 4), num_classes=5
    ).eval()


def mixer(**more):
    from timm.models.mlp_mixer import MlpMixer

    torch.manual_seed(0)
    sizes = {"num_classes": 5, "img_size": 32, "patch_size": 8, "num_blocks": 2, "embed_dim": 24}
    return MlpMixer(**{**sizes, **more}).eval()


def sited(model, image=None):
    """The model with its attention explicit, and its sites."""
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(9)) if image is None else image
    make_explicit(model, ADAPTERS, image)
    return model, find_sites(model, image)


def calibrated(model=None, images=None, loss=None, batches=None, size=None):
    """(model, site map, calibration) over ``images``, split at ``batches`` images a batch."""
    model = toy_vit() if model is None else model
    images = toy_images(6) if images is None else images
    model, found = sited(model, images[:1])
    calibration = Calibration(model, found.sites, len(images), seed=0, size=size)
    calibration.collect(images.split(batches or len(images)), loss)
    return model, found, calibration


def steps(*techniques, seed=0, observers=()):
    """The techniques as steps of a recipe, each class with its default configuration."""
    made = [t(t.Config(use=t.name())) if isinstance(t, type) else t for t in techniques]
    owner = Plugin("toy", "qplug-toy", "1.2.3", "toys")
    registry = Registry(owners={f"technique:{t.name()}": owner for t in made})
    return TechniqueCaller(made, registry, seed, observers)


def quantize(weights=4, activations=4, **more):
    """The ``quantize`` section of a recipe."""
    return Quantize.model_validate({"weights": {"bits": weights}, "activations": {"bits": activations}, **more})


class Sequence(nn.Module):
    """Calls ``function(self, x)`` as forward; its modules are given by name."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)
        self.eval()

    def forward(self, x):
        return self.function(self, x)


class Constant(nn.Module):
    """Random values that do not depend on the image: a table of coordinates, or learned queries."""

    def __init__(self, *shape):
        super().__init__()
        self.register_buffer("values", torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))))
