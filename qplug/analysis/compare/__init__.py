"""Comparing recipes under one protocol: finished runs, what they have in common, and what is no more than noise."""

from qplug.analysis.compare.noise import Difference, difference
from qplug.analysis.compare.rows import Group, Row, group

__all__ = ["Difference", "Group", "Row", "difference", "group"]
