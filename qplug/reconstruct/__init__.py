"""Reconstruction: blocks of the quantized model learn to give what the float ones give, on the calibration images."""

from qplug.reconstruct.losses import OutputLoss, Unit
from qplug.reconstruct.settings import Block, Rate, Reconstruction

__all__ = ["Block", "OutputLoss", "Rate", "Reconstruction", "Unit"]
