"""Warnings for the reader of a run's results, one sentence each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import nn

from qplug.core.chance import Chance
from qplug.core.text import Alarm, listed, percent
from qplug.core.types import Change
from qplug.quantization.plan import Plan

if TYPE_CHECKING:
    from qplug.models.float_model import FloatModel


def model_warnings(source: FloatModel, plan: Plan) -> list[str]:
    """Of the model's weights, of its tables, and of what stays in float."""
    found = [source.note] if source.note else []
    tables = [module.weight for module in source.module.modules() if isinstance(module, nn.Embedding)]
    if tables:
        size = sum(table.numel() for table in tables) * 4 / 1e6
        found.append(f"{len(tables)} embedding tables stay in float32, {size:.1f} MB: they are looked up, without MACs")
    if plan.float_macs:
        share = sum(plan.float_macs.values()) / plan.total_macs
        found.append(f"{percent(share)} of the MACs stay in float: {listed(plan.float_macs)}")
    return found + unknown_macs(plan.unknown)


def unknown_macs(unknown: Mapping[str, str]) -> list[str]:
    """A warning that names what computes in float and is in no count of MACs (``SiteMap.unknown``)."""
    if not unknown:
        return []
    names = listed([f"{name} ({operators})" for name, operators in unknown.items()])
    return [f"the share of quantized MACs is unknown: no formula counts what stays in float in {names}"]


def chance_warning(chance: Chance, causes: str) -> list[str]:
    """A warning if the float model is no better than chance: then no figure of the run says anything."""
    if not chance.is_likely:
        return []
    return [
        Alarm(
            f"the float model is no better than chance: top-1 {chance.right / chance.examples:.2%} of "
            f"{chance.examples:,} examples, {chance.expected:.2%} by chance (p = {chance.p_value:.2g}). Check {causes}"
        )
    ]


def ask_for_training(changes: Iterable[Change]) -> list[str]:
    """A warning for each technique that changed the function: only training makes up for it."""
    where: dict[str, list[str]] = {}
    for change in changes:
        if not change.preserves:
            where.setdefault(change.technique, []).append(change.where)
    return [
        f"{technique} changed the function at {listed(names)}; training has to make up for it"
        for technique, names in where.items()
    ]
