"""pluggy's manager, as every place that asks hooks makes it."""

from __future__ import annotations

import warnings
from typing import Any

import pluggy

from qplug.hooks.specs import PROJECT

RENAMED = {
    "qplug_estimate_range": "qplug_make_quantizer",
    "qplug_bound_activation": "qplug_rewrite_activation",
    "qplug_alternate": "qplug_alternation_rounds",
}
"""Old name of a hook → its name. The old names go with version 0.2."""


class Manager(pluggy.PluginManager):
    """Holds what implements the hooks of ``specifications``, a class of ``qplug.hooks.specs``.

    Private names are passed over: no hook has one, and to look at all that Python gives an object takes pluggy most of
    the time in which a recipe is validated.
    """

    def __init__(self, specifications: type) -> None:
        super().__init__(PROJECT)
        self.add_hookspecs(specifications)

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        """As pluggy's; an implementation under a hook's old name is one of the hook, with a warning."""
        options: Any = None if name.startswith("_") else super().parse_hookimpl_opts(plugin, name)
        if options is not None and name in RENAMED:
            owner = plugin if isinstance(plugin, type) else type(plugin)
            warnings.warn(
                f"{owner.__module__}.{owner.__qualname__} implements {name}, which is named {RENAMED[name]} now; "
                "the old name goes with qplug 0.2",
                DeprecationWarning,
                stacklevel=2,
            )
            options["specname"] = RENAMED[name]
        return options
