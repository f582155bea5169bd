"""Measurements of a run: what it costs (``accounting``) and what it still knows (``accuracy``)."""

from qplug.metrics.accounting import account, costs, uniform_plan
from qplug.metrics.accuracy import Evaluation, Logits, compare, evaluate, share_right

__all__ = ["Evaluation", "Logits", "account", "compare", "costs", "evaluate", "share_right", "uniform_plan"]
