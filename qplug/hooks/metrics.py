"""The metrics of plugins: computed for every run, none of which one of them can end."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from qplug.core.errors import Terminated
from qplug.core.seeding import seeded
from qplug.hooks.registry import Registry
from qplug.hooks.torch_state import torch_state_kept

if TYPE_CHECKING:
    from torch import Tensor

    from qplug.core.examples import Labels


def measure(
    registry: Registry, seed: int, float_logits: Tensor, logits: Tensor, labels: Labels
) -> tuple[dict[str, float], list[str]]:
    """The value of each metric that an installed plugin brings, and a warning for each that gave none.

    Args:
        registry: what is installed.
        seed: of the recipe; each metric starts from a seed made of it and the metric's name.
        float_logits: the float model's, in the shape that ``qplug.Metric`` describes.
        logits: the quantized model's, likewise.
        labels: of each example.
    """
    values: dict[str, float] = {}
    warnings: list[str] = []
    for name, metric in registry.metrics.items():
        owner = registry.owners.get(f"metric:{name}")
        who = f"metric {name}" + (f" of {owner.distribution} {owner.version}" if owner else "")
        changed: list[str] = []
        try:
            with seeded(seed, name), torch_state_kept() as changed:
                given = [copy.deepcopy(one) for one in (float_logits, logits, labels)]  # whatever it writes to them
                values[name] = number(metric.compute(*given))
        except Terminated:
            raise
        except (Exception, SystemExit, GeneratorExit) as error:
            warnings.append(f"{who} has no value: {type(error).__name__}: {error}")
        warnings += [f"{who} changed {what}; qplug restored it" for what in changed]
    return values, warnings


def number(value: Any) -> float:
    """A metric's value as a number of Python; raises ``TypeError`` or ``ValueError`` where it is none."""
    if hasattr(value, "item"):  # a tensor or an array of one element
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"a number was expected, got {value!r}")
    if value != value:
        raise ValueError("a number was expected, got NaN")
    return value
