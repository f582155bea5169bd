"""HAWQ-V3 (Yao et al. 2021, arXiv:2011.10680): bit widths per layer by Hessian traces and an integer programme."""

from __future__ import annotations

from collections.abc import Iterable

from qplug_plugins.hawq.hawq_v3 import HawqV3

from qplug import Technique, hookimpl


@hookimpl
def qplug_techniques() -> Iterable[type[Technique]]:
    """The bit allocation."""
    return [HawqV3]
