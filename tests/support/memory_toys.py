"""Small models and loaders that a program might hold in memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = (3, 16, 16)


class Two(nn.Module):
    """A convolutional trunk with two heads."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.bn = nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8)
            self.classes, self.box = nn.Linear(8, 5), nn.Linear(8, 4)

    def trunk(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x))).mean((2, 3))

    def forward(self, x: Tensor):
        trunk = self.trunk(x)
        return self.classes(trunk), self.box(trunk)


class One(Two):
    """The first head alone."""

    def forward(self, x: Tensor):
        return super().forward(x)[0]


class Keyword(Two):
    """Takes its images by keyword, and labels as transformers does."""

    def forward(self, *, pixels: Tensor, labels: Tensor | None = None):
        return {"loss": None, "logits": self.classes(self.trunk(pixels))}


class Added(nn.Module):
    """Two inputs of one shape, by name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, a: Tensor, b: Tensor):
        return self.left(a) + self.right(b)


def images(count: int = 8, seed: int = 0) -> Tensor:
    """(count, 3, 16, 16) float32."""
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(seed))


def batches(seed: int = 0, count: int = 8) -> list[Tensor]:
    """Two batches of inputs."""
    return list(images(count, seed).split(count // 2))


def labelled(seed: int = 1, count: int = 8) -> list[tuple[Tensor, Tensor]]:
    """Two batches of inputs and labels."""
    return [(x, torch.arange(len(x)) % 5) for x in batches(seed, count)]
