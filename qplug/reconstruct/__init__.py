"""Reconstruction: blocks of the quantised model learn to give what the float ones give, on the calibration images."""

from qplug.reconstruct.learners import (
    LearnedStep,
    Learner,
    bit_penalty,
    learned_steps,
    rectified_sigmoid,
    soft_bit_logits,
)
from qplug.reconstruct.losses import OutputLoss, Unit
from qplug.reconstruct.settings import Block, Rate, Reconstruction

__all__ = [
    "Block",
    "LearnedStep",
    "Learner",
    "OutputLoss",
    "Rate",
    "Reconstruction",
    "Unit",
    "bit_penalty",
    "learned_steps",
    "rectified_sigmoid",
    "soft_bit_logits",
]
