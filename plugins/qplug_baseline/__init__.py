"""The baselines: every way to estimate a range that the papers compare against, and uniform bits. All run last."""

from __future__ import annotations

from collections.abc import Iterable

from qplug import Technique, hookimpl
from qplug_baseline.bits import UniformBits
from qplug_baseline.hessian import Hessian
from qplug_baseline.ranges import Ema, MinMax, Mse, Percentile


@hookimpl
def qplug_techniques() -> Iterable[type[Technique]]:
    """The baselines."""
    return [MinMax, Ema, Percentile, Mse, Hessian, UniformBits]
