"""MPTQ-ViT (Tai and Wu 2024, arXiv:2401.14895): SQ-b, OPT-m and Greedy MP."""

from __future__ import annotations

from collections.abc import Iterable

from qplug_plugins.mptq_vit.greedy_mp import GreedyMp
from qplug_plugins.mptq_vit.opt_m import OptM
from qplug_plugins.mptq_vit.sq_b import SqB

from qplug import Technique, hookimpl


@hookimpl
def qplug_techniques() -> Iterable[type[Technique]]:
    """SQ-b, OPT-m and Greedy MP."""
    return [SqB, OptM, GreedyMp]
