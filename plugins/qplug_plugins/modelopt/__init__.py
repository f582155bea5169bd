"""NVIDIA ModelOpt's own algorithms, beside which qplug's can be compared: its code finds ranges, scales and bits.

What they find becomes an ordinary plan, which any backend executes.
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
    """``modelopt.scaled``."""
    return {"modelopt.scaled": "qplug_plugins.modelopt.quantizer:ScaledQuantizer"}
