"""Checks of a quantizer that was restored from a plan: values that no run writes are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from qplug.core.types import Site
from qplug.quantization.quantizers import LogQuantizer, Quantizer, RegionQuantizer, UniformQuantizer


def check_restored(quantizer: Quantizer, values: Mapping[str, Any], site: Site) -> None:
    """Raise ``ValueError`` where ``quantizer`` has other bits, wrong scales, or does not fit ``site``.

    Args:
        quantizer: as ``from_dict`` restored it.
        values: that it was restored from.
        site: whose tensor it quantizes.
    """
    if quantizer.bits != values["bits"]:
        raise ValueError(f"expected {values['bits']} bits, received {quantizer.bits}")
    for name, tensor in quantizer.named_buffers():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} is not finite")
    scale = quantizer.step if isinstance(quantizer, RegionQuantizer) else None
    if isinstance(quantizer, (UniformQuantizer, LogQuantizer)):
        scale = quantizer.scale
    if scale is not None and not (scale > 0).all():
        raise ValueError("expected positive scales, received 0 or a negative one")
    if not site.kind.is_weight:
        _try(quantizer, site)
    elif isinstance(quantizer, UniformQuantizer):
        _check_axes(tuple(quantizer.scale.shape), site.shape)


def _check_axes(scales: tuple[int, ...], weight: tuple[int, ...]) -> None:
    """A weight has one scale, or scales of as many axes as itself, each as long as the weight's or 1."""
    fits = len(scales) == len(weight) and all(n in (1, size) for n, size in zip(scales, weight, strict=True))
    if scales and not fits:
        raise ValueError(f"scales of shape {scales} do not fit a weight of {weight}")


def _try(quantizer: Quantizer, site: Site) -> None:
    """Quantize zeros of the site's shape, so that scales that do not broadcast fail here, by name."""
    x = torch.zeros(1, *site.shape)
    shape = tuple(quantizer.infer(x).shape)
    if shape != tuple(x.shape):
        raise ValueError(f"expected values of shape {tuple(x.shape)}, received {shape}")
