"""Quantizers that several papers share: modules that fake-quantize a tensor. Other quantizers are in plugins."""

from qplug.quantization.quantizers.base import Quantizer, integer_range, round_ste
from qplug.quantization.quantizers.log import LogQuantizer
from qplug.quantization.quantizers.regions import Region, RegionQuantizer
from qplug.quantization.quantizers.uniform import UniformQuantizer

__all__ = ["LogQuantizer", "Quantizer", "Region", "RegionQuantizer", "UniformQuantizer", "integer_range", "round_ste"]
