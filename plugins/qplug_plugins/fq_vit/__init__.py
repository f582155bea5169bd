"""FQ-ViT (Lin et al. 2022, arXiv:2111.13824): fully quantized transformers, LayerNorm and Softmax included."""

from __future__ import annotations

from collections.abc import Iterable

from qplug_plugins.fq_vit.log_int_softmax import LogIntSoftmax
from qplug_plugins.fq_vit.power_of_two_factor import PowerOfTwoFactor

from qplug import Technique, hookimpl


@hookimpl
def qplug_techniques() -> Iterable[type[Technique]]:
    """Power-of-two factor and log-int-softmax."""
    return [PowerOfTwoFactor, LogIntSoftmax]
