"""Replacement of modules in a model."""

from __future__ import annotations

from torch import nn

from qplug.models.interface import positional_again


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace ``old`` by ``new`` at every path of the model: a shared module has several paths."""
    positional_again(old, new)
    for name in [name for name, module in model.named_modules(remove_duplicate=False) if module is old]:
        put(model, name, new)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Set ``module`` at the path ``name`` of ``model``; an existing module is replaced, missing parents are created."""
    *parents, leaf = name.split(".")
    for parent in parents:
        if not hasattr(model, parent):
            model.add_module(parent, nn.Module())
        model = model.get_submodule(parent)
    setattr(model, leaf, module)
