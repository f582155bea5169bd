"""What an error of a block's output costs: losses that can be swapped, by name or as a plugin's own object."""

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
"""The losses that recipes and techniques can name, each made without arguments."""

__all__ = ["LOSSES", "Fisher", "LowRank", "MeanSquared", "OutputLoss", "Perturbation", "Unit", "Weighted"]
