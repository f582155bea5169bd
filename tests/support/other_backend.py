"""A backend of a plugin."""

import copy
from dataclasses import replace

from qplug.quantization.backends.brevitas import BrevitasBackend


class Other(BrevitasBackend):
    """Computes something else than the backends that come with qplug."""

    name = "other"

    def apply(self, model, plan):
        lowered = super().apply(model, plan)
        for path in plan.modules():
            lowered.get_submodule(path).register_forward_hook(lambda module, args, out: out * 1.02)
        return lowered


def with_other(registry):
    """``registry`` and a backend ``other``."""
    more = copy.copy(registry)
    more.backends = {**registry.backends, "other": replace(registry.backends["brevitas"], path=f"{__name__}:Other")}
    return more
