"""What a reader of a run's results must know, one sentence each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from qplug.quantization.plan import Plan

if TYPE_CHECKING:
    from qplug.models.float_model import FloatModel


def notes(source: FloatModel, plan: Plan) -> list[str]:
    """Of the model's weights, of its tables, and of what stays in float."""
    found = [source.note] if source.note else []
    tables = [module.weight for module in source.module.modules() if isinstance(module, nn.Embedding)]
    if tables:
        size = sum(table.numel() for table in tables) * 4 / 1e6
        found.append(f"{len(tables)} embedding tables stay in float32, {size:.1f} MB: they are looked up, without MACs")
    if plan.float_macs:
        share = sum(plan.float_macs.values()) / plan.total_macs
        some = ", ".join(list(plan.float_macs)[:3]) + (", …" if len(plan.float_macs) > 3 else "")
        found.append(f"{share:.1%} of the MACs stay in float: {some}")
    return found
