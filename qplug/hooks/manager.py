"""pluggy's manager, as every place that asks hooks makes it."""

from __future__ import annotations

from typing import Any

import pluggy

from qplug.hooks.specs import PROJECT


class Manager(pluggy.PluginManager):
    """Holds what implements the hooks of ``specifications``, a class of ``qplug.hooks.specs``.

    Private names are passed over: no hook has one, and to look at all that Python gives an object takes pluggy most of
    the time in which a recipe is validated.
    """

    def __init__(self, specifications: type) -> None:
        super().__init__(PROJECT)
        self.add_hookspecs(specifications)

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        """As pluggy's."""
        return None if name.startswith("_") else super().parse_hookimpl_opts(plugin, name)
