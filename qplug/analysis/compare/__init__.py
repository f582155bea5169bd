"""Comparison of recipes under one protocol: finished runs, groups of comparable rows, and significance tests."""

from qplug.analysis.compare.noise import SeedDifference, difference
from qplug.analysis.compare.rows import ComparisonRow, Group, group

__all__ = ["ComparisonRow", "Group", "SeedDifference", "difference", "group"]
