"""PTQ4ViT (Yuan, Xue, Chen, Wu and Sun 2022, arXiv:2111.12293): twin uniform quantizers and the alternating search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qplug_plugins.ptq4vit.search import Search
from qplug_plugins.ptq4vit.twin import Twin

from qplug import Technique, hookimpl


@hookimpl
def qplug_techniques() -> Iterable[type[Technique]]:
    """Twin uniform quantization and the alternating search."""
    return [Twin, Search]


@hookimpl
def qplug_quantizers() -> Mapping[str, str]:
    """The twin uniform quantizer."""
    return {"twin": "qplug_plugins.ptq4vit.quantizer:TwinQuantizer"}
