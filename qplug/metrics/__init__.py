"""Measurements of a run: what it costs (``accounting``) and what it still knows (``accuracy``)."""

from qplug.metrics.accounting import BOPS_CONVENTION, account
from qplug.metrics.accuracy import Evaluation, Logits, compare, evaluate, share_right

__all__ = ["BOPS_CONVENTION", "Evaluation", "Logits", "account", "compare", "evaluate", "share_right"]
