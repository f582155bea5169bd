"""Modules and their places in a model."""

from __future__ import annotations

from torch import nn


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever the model holds ``old``: a module may bear several names."""
    for name in [name for name, module in model.named_modules(remove_duplicate=False) if module is old]:
        put(model, name, new)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` at the path ``name`` of ``model``, in the place of what is there; parents that lack are made."""
    *parents, leaf = name.split(".")
    for parent in parents:
        if not hasattr(model, parent):
            model.add_module(parent, nn.Module())
        model = model.get_submodule(parent)
    setattr(model, leaf, module)
