"""NVIDIA ModelOpt's algorithms for ranges, scales and bits, for comparison with qplug's.

Their results become an ordinary plan, which any backend executes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qplug_plugins.modelopt.bits import AutoQuantize
from qplug_plugins.modelopt.ranges import Max
from qplug_plugins.modelopt.scales import AwqLite, SmoothQuant

from qplug import Technique, hookimpl


@hookimpl
def qplug_techniques() -> Iterable[type[Technique]]:
    """Max calibration, SmoothQuant, AWQ (lite) and auto_quantize."""
    return [Max, SmoothQuant, AwqLite, AutoQuantize]


@hookimpl
def qplug_quantizers() -> Mapping[str, str]:
    """The quantizer that holds a ``pre_quant_scale``."""
    return {"modelopt.scaled": "qplug_plugins.modelopt.quantizer:ScaledQuantizer"}
