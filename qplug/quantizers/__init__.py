"""Quantizers: modules that fake-quantize. What one paper invents lives in its plugin; what several share lives here."""

from qplug.quantizers.base import Quantizer, integer_range, round_ste
from qplug.quantizers.log import LogQuantizer
from qplug.quantizers.regions import Region, RegionQuantizer
from qplug.quantizers.uniform import UniformQuantizer

__all__ = ["LogQuantizer", "Quantizer", "Region", "RegionQuantizer", "UniformQuantizer", "integer_range", "round_ste"]
