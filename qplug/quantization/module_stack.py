"""The modules that a forward is calling, innermost last."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import nn
from torch.nn.modules import module as hooks

ROOT = "(model)"
"""Name of what belongs to no module but the model itself."""


class ModuleStack:
    """Context that knows the modules being called, and counts their calls, by hooks that belong to no module."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {id(module): name or ROOT for name, module in model.named_modules()}
        self.calls: dict[str, int] = defaultdict(int)
        self.modules: list[nn.Module] = []

    def __enter__(self) -> ModuleStack:
        self._handles = [
            hooks.register_module_forward_pre_hook(self._push),
            hooks.register_module_forward_hook(self._pop, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _push(self, module: nn.Module, _: Any) -> None:
        self.modules.append(module)
        if id(module) in self.names:
            self.calls[self.names[id(module)]] += 1

    def _pop(self, module: nn.Module, _: Any, __: Any) -> None:
        while self.modules and self.modules.pop() is not module:
            pass

    @property
    def innermost(self) -> str:
        """Name of the innermost module of the model that is being called."""
        return next((self.names[id(one)] for one in reversed(self.modules) if id(one) in self.names), ROOT)
