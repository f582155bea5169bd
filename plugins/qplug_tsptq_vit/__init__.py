"""TSPTQ-ViT (Tai, Lin and Wu 2023): two-scaled quantizers, MPTQ-ViT's baseline."""

from __future__ import annotations

from collections.abc import Iterable

from qplug import Technique, hookimpl
from qplug_tsptq_vit.o_2sf import O2sf
from qplug_tsptq_vit.v_2sf import V2sf


@hookimpl
def qplug_techniques() -> Iterable[type[Technique]]:
    """V-2SF and O-2SF."""
    return [V2sf, O2sf]
