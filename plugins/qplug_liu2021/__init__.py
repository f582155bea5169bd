"""Liu et al. 2021, Post-Training Quantization for Vision Transformer (arXiv:2106.14156): mixed precision by module."""

from __future__ import annotations

from collections.abc import Iterable

from qplug import Technique, hookimpl
from qplug_liu2021.pareto import Pareto


@hookimpl
def qplug_techniques() -> Iterable[type[Technique]]:
    """The Pareto allocation."""
    return [Pareto]
