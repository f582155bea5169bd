"""Liu et al. 2021, Post-Training Quantization for Vision Transformer (arXiv:2106.14156): mixed precision by module."""

from __future__ import annotations

from collections.abc import Iterable

from qplug_plugins.liu2021.pareto import Pareto

from qplug import Technique, hookimpl


@hookimpl
def qplug_techniques() -> Iterable[type[Technique]]:
    """The bit allocation."""
    return [Pareto]
