"""What a reader of a run's results must know, one sentence each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from qplug.plan import Change, Plan

if TYPE_CHECKING:
    from qplug.models import FloatModel
    from qplug.recipe import Recipe


def untrained(changes: list[Change], recipe: Recipe) -> list[str]:
    """A warning for every technique that changed the function, where no fine-tune makes up for it."""
    changed: dict[str, list[str]] = {}
    for change in changes if recipe.finetune is None else ():
        if not change.preserves:
            changed.setdefault(change.technique, []).append(change.where)
    return [
        f"{technique} changed the function at {where[0]}"
        + (f" and {len(where) - 1} more" if len(where) > 1 else "")
        + ", which asks for training, and the recipe has no finetune"
        for technique, where in changed.items()
    ]


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
