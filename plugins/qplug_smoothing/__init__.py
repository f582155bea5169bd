"""Smoothings from language models, which MPTQ-ViT compares with: SmoothQuant and Outlier Suppression+."""

from __future__ import annotations

from collections.abc import Iterable

from qplug import Technique, hookimpl
from qplug_smoothing.outlier_suppression_plus import OutlierSuppressionPlus
from qplug_smoothing.smooth_quant import SmoothQuant


@hookimpl
def qplug_techniques() -> Iterable[type[Technique]]:
    """SmoothQuant and Outlier Suppression+."""
    return [SmoothQuant, OutlierSuppressionPlus]
