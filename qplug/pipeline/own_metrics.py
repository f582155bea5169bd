"""Metrics of a caller's own function, of the float and of the quantized model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qplug.core.errors import InputError, QplugError
from qplug.core.text import listed
from qplug.hooks.metrics import number
from qplug.models.in_memory import as_given

if TYPE_CHECKING:
    from qplug.models.in_memory import MemoryModel
    from qplug.pipeline.context import RunContext

Evaluate = Callable[[nn.Module], Mapping[str, float]]
TAKEN = ("size_mb", "bops_g", "forward_seconds", "chance", "agreement", "logit_sqnr_db")
"""Metrics of qplug's own, whatever the task."""
RETURNS = 'return numbers by name, such as {"accuracy": 0.75}'


@dataclass
class OwnMetrics:
    """The caller's function, and the float model's numbers.

    Attributes:
        evaluate: from a model to numbers by name.
        float_: the float model's numbers.
    """

    evaluate: Evaluate
    float_: dict[str, float]

    @classmethod
    def of(cls, evaluate: Evaluate | None, source: MemoryModel, ctx: RunContext) -> OwnMetrics | None:
        """Measure the float model, before any other work; ``None`` without a function."""
        if evaluate is None:
            return None
        module = as_given(source.load().module.to(ctx.device))
        with ctx.stage("evaluate float"):
            return cls(evaluate, _measured(evaluate, module, "the float model"))

    def metrics(self, model: nn.Module, task_metrics: Mapping[str, Any]) -> dict[str, Any]:
        """``float.<name>`` and ``quantized.<name>`` of every number; the first is the score of the run.

        Args:
            model: the quantized model; it loses the interface of the pipeline, which no later stage calls.
            task_metrics: what the task measured, whose names are taken.
        """
        taken = [name for name in self.float_ if f"quantized.{name}" in task_metrics]
        if taken:
            what = f"evaluate returns '{taken[0]}', which qplug measures itself on the evaluation data"
            raise InputError(what, where="evaluate", fix="name it differently, or leave evaluation= out")
        quantized = _measured(self.evaluate, as_given(model), "the quantized model")
        if quantized.keys() != self.float_.keys():
            what = (
                f"returned {listed(quantized)} for the quantized model, and {listed(self.float_)} for the float model"
            )
            raise InputError(what, where="evaluate", fix="return the same names for every model")
        first = next(iter(self.float_))
        pairs = {f"float.{name}": value for name, value in self.float_.items()}
        pairs |= {f"quantized.{name}": quantized[name] for name in self.float_}
        return {**pairs, "score": first, "score_title": first, "score_unit": "number"}


def _measured(evaluate: Evaluate, model: nn.Module, which: str) -> dict[str, float]:
    try:
        with torch.no_grad():
            found = evaluate(model.eval())
    except QplugError:
        raise
    except Exception as error:  # the caller's own code
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise InputError(f"raised for {which}: {said}", where="evaluate") from error
    if not isinstance(found, Mapping) or not found or not all(isinstance(name, str) and name for name in found):
        what = f"returned {type(found).__name__} for {which}, and expected are numbers by name"
        raise InputError(what, where="evaluate", fix=RETURNS)
    if wrong := [name for name in found if name in TAKEN]:
        raise InputError(f"returned '{wrong[0]}', a name of qplug's own", where="evaluate", fix="name it differently")
    values = {}
    for name, value in found.items():
        try:
            values[name] = number(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"returned no number for '{name}' of {which}: {error}", where="evaluate", fix=RETURNS
            ) from error
    return values
