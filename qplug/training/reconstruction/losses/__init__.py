"""Losses of a block's output error, chosen by name or given as an object of a plugin."""

from __future__ import annotations

from qplug.core.types import LossName
from qplug.training.reconstruction.losses.base import MeanSquared, OutputLoss, Unit, Weighted
from qplug.training.reconstruction.losses.fisher import Fisher
from qplug.training.reconstruction.losses.low_rank import LowRank
from qplug.training.reconstruction.losses.perturbation import Perturbation

LOSSES: dict[LossName, type[OutputLoss]] = {
    "mse": MeanSquared,
    "fisher": Fisher,
    "perturbation": Perturbation,
    "low_rank": LowRank,
}
"""The losses that recipes and techniques choose by name; their constructors need no arguments."""

__all__ = ["LOSSES", "Fisher", "LowRank", "MeanSquared", "OutputLoss", "Perturbation", "Unit", "Weighted"]
