"""A task as a plugin brings it: points in the plane, judged by their distance from the place where they should be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qplug import Annotation, InputError
from qplug.core.task import Task


@dataclass(frozen=True)
class Place(Annotation):
    """Where the point of an image is: x and y."""

    x: float
    y: float

    def content(self) -> list[float]:
        """Both coordinates."""
        return [self.x, self.y]


class Points(Task):
    """Outputs (B, 2): a point is as good as it is near; the score of an image is max(0, 1 − distance)."""

    name = "points"
    losses = ("logits",)
    score = "nearness"
    score_title = "nearness"
    label_kind = "places"

    def accepts(self, outputs: Tensor) -> bool:
        """Two coordinates."""
        return outputs.dim() == 2 and outputs.shape[1] == 2

    def calibration_loss(self, name: str, outputs: Tensor) -> Tensor:
        """A probe of random signs."""
        return (outputs * (torch.randint(2, outputs.shape) * 2.0 - 1.0)).sum()

    def divergence(self, outputs: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
        """The squared distance."""
        return (outputs - target).square().sum()

    def check_labels(self, labels: list[Place], outputs: Tensor, where: str) -> None:
        """A place lies in the unit square."""
        for place in labels:
            if not 0.0 <= place.x <= 1.0:
                raise InputError(f"a place has x {place.x}, outside of 0 … 1", where=where)

    def energies(self, reference: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Of both coordinates."""
        return reference.double().square(), (outputs - reference).double().square()

    def scores(self, outputs: Tensor, labels: list[Place]) -> Tensor:
        """(N,): the nearness of each point."""
        places = torch.tensor([place.content() for place in labels])
        return (1.0 - (outputs - places).norm(dim=1)).clamp_min(0.0)

    def judge(self, outputs: Tensor, labels: list[Place]) -> float:
        """The mean nearness."""
        return float(self.scores(outputs, labels).mean())

    def metrics(self, float_: Tensor, quantized: Tensor, labels: list[Place]) -> dict[str, float]:
        """The score of both, and what every task has."""
        signal, noise = (energy.sum() for energy in self.energies(float_, quantized))
        return {
            "float.nearness": self.judge(float_, labels),
            "quantized.nearness": self.judge(quantized, labels),
            "quantized.agreement": self.agreement(float_, quantized) / len(float_),
            "quantized.logit_sqnr_db": float(10 * torch.log10(signal / noise)),
        }

    def by_example(self, float_: Tensor, quantized: Tensor, labels: list[Place]) -> dict[str, Tensor]:
        """The nearness of each point."""
        return {"quantized.by_example": self.scores(quantized, labels)}

    def agreement(self, first: Tensor, second: Tensor) -> int:
        """Points that are within a tenth of each other."""
        return int(((first - second).norm(dim=1) < 0.1).sum())


class PointNet(nn.Module):
    """Where the brightest part of an image (1, 8, 8) is: a convolution and a linear that finds it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(64, 2)
        grid = torch.arange(8) / 8.0 + 1 / 16
        with torch.no_grad():
            self.conv.weight.zero_()[0, 0, 1, 1] = 1.0
            self.conv.bias.zero_()
            self.head.weight[0] = grid.repeat(8)
            self.head.weight[1] = grid.repeat_interleave(8)
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 8, 8) → (B, 2)."""
        return self.head(self.conv(x).flatten(1))


def point_images(count: int, seed: int = 0) -> tuple[Tensor, list[Place]]:
    """Images (count, 1, 8, 8) with one bright pixel each, and where it is."""
    cells = torch.randint(64, (count,), generator=torch.Generator().manual_seed(seed))
    images = nn.functional.one_hot(cells, 64).float().view(count, 1, 8, 8)
    return images, [Place(float(cell % 8) / 8 + 1 / 16, float(cell // 8) / 8 + 1 / 16) for cell in cells]
