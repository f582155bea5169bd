"""TSPTQ-ViT (Tai, Lin and Wu 2023): two-scaled quantizers, MPTQ-ViT's baseline."""

from __future__ import annotations

from collections.abc import Iterable

from qplug_plugins.tsptq_vit.o_2sf import O2sf
from qplug_plugins.tsptq_vit.v_2sf import V2sf

from qplug import Technique, hookimpl


@hookimpl
def qplug_techniques() -> Iterable[type[Technique]]:
    """V-2SF and O-2SF."""
    return [V2sf, O2sf]
