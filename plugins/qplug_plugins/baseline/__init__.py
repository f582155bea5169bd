"""Baselines: the range estimators that the papers compare with, and uniform bits. All run last."""

from __future__ import annotations

from collections.abc import Iterable

from qplug_plugins.baseline.bits import UniformBits
from qplug_plugins.baseline.hessian import Hessian
from qplug_plugins.baseline.ranges import Ema, MinMax, Mse, Percentile

from qplug import Technique, hookimpl


@hookimpl
def qplug_techniques() -> Iterable[type[Technique]]:
    """Five range estimators and uniform bits."""
    return [MinMax, Ema, Percentile, Mse, Hessian, UniformBits]
