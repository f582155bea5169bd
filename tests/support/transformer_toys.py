"""Small models whose attention is torch's own, and runs of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import qplug
from qplug.core.component import ModelSource
from qplug.hooks.registry import Registry
from qplug.models.float_model import FloatModel, Preprocessing
from qplug.pipeline.results import RunResult
from qplug.testing.run import ToyMinMax, ToyModel, toy_recipe, toy_registry
from qplug.testing.toys import CLASSES, SIZE

WIDTH = 16


class Patches(nn.Module):
    """Tokens of an image, a body that mixes them, and a head; ``first`` is the layout (N, B, C)."""

    def __init__(self, body: Callable[[], nn.Module], first: bool = False) -> None:
        super().__init__()
        self.patch, self.body, self.head = nn.Conv2d(3, WIDTH, 8, 8), body(), nn.Linear(WIDTH, CLASSES)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).permute(2, 0, 1) if self.first else self.patch(x).flatten(2).transpose(1, 2)
        out: Tensor = self.head(self.body(tokens).mean(0 if self.first else 1))
        return out


def encoder(layers: int = 1, **more: object) -> nn.Module:
    """torch's encoder, with nested tensors unless switched off."""
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 24, **{"batch_first": True, **more})  # type: ignore[arg-type]
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=bool(layer.self_attn.batch_first))


def vision_transformer() -> nn.Module:
    """torchvision's, with a head that is not zero."""
    from torchvision.models import VisionTransformer

    model = VisionTransformer(SIZE[1], 8, 1, 2, WIDTH, 24, num_classes=CLASSES)
    nn.init.normal_(model.heads.head.weight)
    return model


def registry_of(build: Callable[[], nn.Module]) -> Registry:
    """The toys' registry, whose model ``build`` makes from one seed."""

    class Model(ToyModel):
        def load(self) -> FloatModel:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                module = build()
            return FloatModel.of(module, "net", Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3, "nearest", 1.0))

    registry = copy.copy(toy_registry())
    registry.models = registry.models | {"toy": Model}
    return registry


def source_of(build: Callable[[], nn.Module]) -> ModelSource:
    """The source of ``registry_of``."""
    return registry_of(build).models["toy"](ToyModel.Config())


def run_of(build: Callable[[], nn.Module], out: Path | None = None, bits: int = 8) -> RunResult:
    """A run of the model that ``build`` makes, on the toys' images."""
    registry = registry_of(build)
    return qplug.run(toy_recipe(ToyMinMax, registry=registry, bits=bits), out=out, registry=registry)
