"""Measurements of a run: what it costs (``accounting``) and what it still knows (``accuracy``)."""

from qplug.metrics.accounting import account, costs, plan_of, uniform_plan
from qplug.metrics.accuracy import Evaluation, Logits, compare, evaluate, share_right

__all__ = ["Evaluation", "Logits", "account", "compare", "costs", "evaluate", "plan_of", "share_right", "uniform_plan"]
