"""Reconstruction: blocks of the quantized model learn to give what the float ones give, on the calibration images."""

from qplug.training.reconstruction.config import Block, Rate, Reconstruction
from qplug.training.reconstruction.losses import OutputLoss, Unit

__all__ = ["Block", "OutputLoss", "Rate", "Reconstruction", "Unit"]
