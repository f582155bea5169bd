"""Replacement of modules in a model."""

from __future__ import annotations

from torch import nn

from qplug.models.interface import positional_again


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace ``old`` by ``new`` at every path of the model: a shared module has several paths."""
    Replacer(model).replace(old, new)


class Replacer:
    """Replaces many modules of a model, and looks for their paths once: a search for each takes quadratic time."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._find()

    def _find(self) -> None:
        self._paths: dict[nn.Module, list[str]] = {}  # modules are equal only to themselves
        for name, module in self._model.named_modules(remove_duplicate=False):
            self._paths.setdefault(module, []).append(name)

    def replace(self, old: nn.Module, new: nn.Module) -> None:
        """Replace ``old`` by ``new`` at every path, as the function ``replace``."""
        positional_again(old, new)
        for name in self._paths.get(old, ()):
            put(self._model, name, new)
        if next(old.children(), None) is not None:  # whatever it holds may have other paths now
            self._find()


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Set ``module`` at the path ``name`` of ``model``; an existing module is replaced, missing parents are created."""
    *parents, leaf = name.split(".")
    for parent in parents:
        if not hasattr(model, parent):
            model.add_module(parent, nn.Module())
        model = model.get_submodule(parent)
    setattr(model, leaf, module)
