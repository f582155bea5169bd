"""A tiny classifier of digits and its training, for fast tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from qplug.recipe import Recipe, load_recipe

BASE = """
version: 1
seed: 0
model:
  source: import
  target: train_toys:small
  preprocessing:
    {input_size: [1, 8, 8], mean: [0.305], std: [0.376], interpolation: bilinear, crop_pct: 1.0, crop_mode: center}
data:
  calibration: {source: digits, split: train, images: 16}
  evaluation: {source: digits, split: test, images: 50}
  training: {source: digits, split: train, images: 96}
quantize:
  weights: {bits: 4}
  activations: {bits: 4, symmetric: false}
techniques:
  - use: baseline.minmax
"""
QUICK = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, "augment": None, "hold_out": 16}


class Small(nn.Module):
    """A convolution, its BatchNorm, a dropout and two linears: 1,626 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.drop = nn.Dropout(0.1)
        self.hidden = nn.Linear(8 * 16, 10)
        self.head = nn.Linear(10, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, 8, 8) → (B, 10)."""
        x = self.drop(self.act(self.norm(self.conv(x))).flatten(1))
        return self.head(self.act(self.hidden(x)))


def small() -> nn.Module:
    """The classifier with fixed random weights, because a model source seeds its call."""
    return Small()


def recipe(tmp_path: Path, *overrides: str, **sections: Any) -> Recipe:
    """``BASE`` with the sections ``finetune`` or ``qat`` over ``QUICK``; ``overrides`` as for ``--set``."""
    import json

    path = tmp_path / "recipe.yaml"
    more = {name: {**QUICK, **values} for name, values in sections.items()}
    path.write_text(BASE + "".join(f"{name}: {json.dumps(values)}\n" for name, values in more.items()))
    return load_recipe(path, overrides, allow_code=True)
