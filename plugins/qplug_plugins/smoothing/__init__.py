"""Smoothings for language models that MPTQ-ViT compares with: SmoothQuant and Outlier Suppression+."""

from __future__ import annotations

from collections.abc import Iterable

from qplug_plugins.smoothing.outlier_suppression_plus import OutlierSuppressionPlus
from qplug_plugins.smoothing.smooth_quant import SmoothQuant

from qplug import Technique, hookimpl


@hookimpl
def qplug_techniques() -> Iterable[type[Technique]]:
    """SmoothQuant and Outlier Suppression+."""
    return [SmoothQuant, OutlierSuppressionPlus]
