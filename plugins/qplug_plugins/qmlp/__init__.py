"""Q-MLP: norms and activations that restrict ranges, and token mixers that are less sensitive.

Its other two techniques are elsewhere. Percentile and moving-average ranges are ``baseline.percentile`` and
``baseline.ema``. Asymmetric activations with symmetric weights are the recipe's ``symmetric`` and ``zero_point``.
"""

from __future__ import annotations

from collections.abc import Iterable

from qplug_plugins.qmlp.activations import BoundedActivation
from qplug_plugins.qmlp.norms import Norm
from qplug_plugins.qmlp.token_mixers import TokenMixers

from qplug import Technique, hookimpl


@hookimpl
def qplug_techniques() -> Iterable[type[Technique]]:
    """The techniques that rewrite the float model."""
    return [Norm, BoundedActivation, TokenMixers]
