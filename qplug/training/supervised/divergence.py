"""When a training is given up, and where it came apart."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from qplug.core.errors import QplugError
from qplug.training.supervised.problem import Task


class Watch:
    """Looks at the loss of every step.

    It has diverged where it is not finite; and where the mean over a stretch is that of guessing, which 0.9·ln(classes)
    stands for, and ``largest`` times that of the first stretch: a model that starts out broken may first be worse.

    Args:
        task: what is trained, as it is before the first step.
        largest: how many times the first loss.
        stretch: steps of one mean.
    """

    def __init__(self, task: Task, largest: float, stretch: int) -> None:
        self._task, self._largest, self._stretch = task, largest, stretch
        self._norms = {name: float(p.detach().float().norm()) for name, p in task.parameters().items()}

    def problem(self, losses: list[float], classes: int) -> str:
        """What is wrong with the ``losses`` of all steps so far, or nothing."""
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
        """The error that says what diverged and where: the first module that gives, and the first parameter that holds,
        what is not finite; else the parameter that grew most."""
        place = _first_broken(self._task.model, inputs)
        broken = [name for name, p in self._task.parameters().items() if not bool(torch.isfinite(p).all())]
        where = f"the first output that is not finite is that of {place}" if place else self._farthest()
        where += f"; {broken[0]} is not finite itself" if broken else ""
        return QplugError(
            f"training diverged in step {step + 1} of {steps} (learning rate {rate:.3g}): {what}; {where}",
            where=self._task.name,
            fix=f"lower {self._task.name}.learning_rate, set {self._task.name}.clip, or give the tensor more bits",
        )

    def _farthest(self) -> str:
        def moved(name: str, parameter: Tensor) -> float:
            return float(parameter.detach().float().norm()) / max(self._norms[name], 1.0)

        name, parameter = max(self._task.parameters().items(), key=lambda item: moved(*item))
        now = float(parameter.detach().float().norm())
        return f"of all parameters {name} grew most, its norm went from {self._norms[name]:.3g} to {now:.3g}"


@torch.no_grad()
def _first_broken(model: nn.Module, inputs: Tensor) -> str:
    """The first module, in the order in which they finish, whose output is not finite; nothing where all are."""
    found: list[str] = []

    def hook(name: str) -> Any:
        def look(module: nn.Module, _: Any, out: Any) -> None:
            if isinstance(out, Tensor) and not bool(torch.isfinite(out).all()):
                found.append(name)

        return look

    handles = [module.register_forward_hook(hook(name or "the model")) for name, module in model.named_modules()]
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else ""
