"""Detection of a diverged training, and of the module or parameter where it diverged."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from qplug.core.errors import QplugError
from qplug.training.supervised.problem import TrainingProblem


class DivergenceMonitor:
    """Checks the loss after every step.

    A training has diverged if the loss is not finite, or if the mean loss over a stretch exceeds two values:
    0.9·ln(classes), which represents guessing, and ``largest`` times the mean of the first stretch. The second value
    allows a badly initialized model to have a large loss at first.

    Args:
        problem: the training problem, before the first step.
        largest: multiple of the first mean loss.
        stretch: steps of one mean.
    """

    def __init__(self, problem: TrainingProblem, largest: float, stretch: int) -> None:
        self._problem, self._largest, self._stretch = problem, largest, stretch
        self._norms = {name: float(p.detach().float().norm()) for name, p in problem.parameters().items()}

    def diagnose(self, losses: list[float], classes: int) -> str:
        """A description of the divergence in the ``losses`` of all steps so far; empty without divergence."""
        if not math.isfinite(losses[-1]):
            return f"the loss is {losses[-1]}"
        if len(losses) < 2 * self._stretch:
            return ""
        first, last = (sum(part) / self._stretch for part in (losses[: self._stretch], losses[-self._stretch :]))
        if last <= max(self._largest * first, 0.9 * math.log(classes)):
            return ""
        guess = math.log(classes)
        return f"the loss went from {first:.3g} to {last:.3g}, and guessing among {classes} classes costs {guess:.3g}"

    def error(self, what: str, step: int, steps: int, rate: float, inputs: Tensor) -> QplugError:
        """The error for a diverged training.

        It names the first module with an output that is not finite, or else the parameter that grew most. It also names
        the first parameter that is not finite.
        """
        module = _first_not_finite(self._problem.model, inputs)
        broken = [name for name, p in self._problem.parameters().items() if not bool(torch.isfinite(p).all())]
        where = f"{module} is the first module whose output is not finite" if module else self._fastest_growing()
        where += f"; the parameter {broken[0]} is not finite" if broken else ""
        name = self._problem.name
        return QplugError(
            f"training diverged in step {step + 1} of {steps} (learning rate {rate:.3g}): {what}; {where}",
            where=name,
            fix=f"lower {name}.learning_rate, set {name}.clip, or give the tensor more bits",
        )

    def _fastest_growing(self) -> str:
        def growth(name: str, parameter: Tensor) -> float:
            return float(parameter.detach().float().norm()) / max(self._norms[name], 1.0)

        name, parameter = max(self._problem.parameters().items(), key=lambda item: growth(*item))
        now = float(parameter.detach().float().norm())
        return f"of all parameters {name} grew most, its norm went from {self._norms[name]:.3g} to {now:.3g}"


@torch.no_grad()
def _first_not_finite(model: nn.Module, inputs: Tensor) -> str:
    """The first module, in the order of their returns, with an output that is not finite; empty if all are finite."""
    broken: list[str] = []

    def hook(name: str) -> Any:
        def check(module: nn.Module, _: Any, out: Any) -> None:
            if isinstance(out, Tensor) and not bool(torch.isfinite(out).all()):
                broken.append(name)

        return check

    watched = [(n, m) for n, m in model.named_modules() if not isinstance(m, torch.jit.ScriptModule)]  # takes no hooks
    handles = [module.register_forward_hook(hook(name or "the model")) for name, module in watched]
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return broken[0] if broken else ""
