"""RepQ-ViT (Li et al. 2023): scale re-parametrization after LayerNorm, log √2 after Softmax, percentile ranges."""

from __future__ import annotations

from collections.abc import Iterable

from qplug_plugins.repq_vit.log_sqrt2 import LogSqrt2
from qplug_plugins.repq_vit.percentile import Percentile
from qplug_plugins.repq_vit.reparameterize import Reparameterize

from qplug import Technique, hookimpl


@hookimpl
def qplug_techniques() -> Iterable[type[Technique]]:
    """The paper's two techniques, and the range search that its code uses for all other tensors."""
    return [Reparameterize, LogSqrt2, Percentile]
