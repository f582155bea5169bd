"""Learned rounding: AdaRound (Nagel et al. 2020), BRECQ (Li et al. 2021), BRECQ-B and QDrop (Wei et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterable

from qplug_plugins.brecq.reconstruct import AdaRound, Brecq

from qplug import Technique, hookimpl


@hookimpl
def qplug_techniques() -> Iterable[type[Technique]]:
    """AdaRound, which reconstructs single operations, and BRECQ, which reconstructs blocks."""
    return [AdaRound, Brecq]
