"""EasyQuant (Wu, Tang, Zhao, Zhang, Fu and Zhang 2020, arXiv:2006.16669): scales by cosine similarity of outputs."""

from __future__ import annotations

from collections.abc import Iterable

from qplug_plugins.easyquant.cosine import Cosine

from qplug import Technique, hookimpl


@hookimpl
def qplug_techniques() -> Iterable[type[Technique]]:
    """The search of scales."""
    return [Cosine]
