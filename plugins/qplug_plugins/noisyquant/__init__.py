"""NoisyQuant (Liu et al. 2023, arXiv:2211.16056): a fixed noisy bias, subtracted after quantization."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qplug_plugins.noisyquant.noisy_bias import NoisyBias

from qplug import Technique, hookimpl


@hookimpl
def qplug_techniques() -> Iterable[type[Technique]]:
    """The noisy bias."""
    return [NoisyBias]


@hookimpl
def qplug_quantizers() -> Mapping[str, str]:
    """The quantizer that holds the noise."""
    return {"noisyquant.noisy": "qplug_plugins.noisyquant.quantizer:NoisyQuantizer"}
