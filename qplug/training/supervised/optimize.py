"""timm's optimizers, the learning rate of a step, and the moving average of what is learned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from qplug.core.errors import InputError
from qplug.core.text import did_you_mean
from qplug.training.supervised.config import Training


def optimizer_of(
    settings: Training, weights: Mapping[str, nn.Parameter], bounds: set[str], scales: Mapping[str, nn.Parameter]
) -> torch.optim.Optimizer:
    """The recipe's optimizer; what has one axis or none does not decay, but bounds do, as PACT's paper has it.

    Args:
        settings: optimizer, rate and decay.
        weights: of the model, by name.
        bounds: names among them that are bounds of activations.
        scales: of quantizers, whose rate is relative (see ``Learn.rate``).

    Raises:
        InputError: timm has no such optimizer, or it refuses these values.
    """
    from timm.optim import create_optimizer_v2, list_optimizers

    decay = [p for name, p in weights.items() if p.dim() > 1 or name in bounds]
    rest = [p for name, p in weights.items() if not (p.dim() > 1 or name in bounds)]
    groups = [(decay, settings.weight_decay), (rest, 0.0), (list(scales.values()), 0.0)]
    name, rate = settings.optimizer, settings.learning_rate
    given = [{"params": found, "weight_decay": decay, "lr": rate} for found, decay in groups if found]
    if name not in list_optimizers():
        fix = did_you_mean(name, list_optimizers()) or "timm.optim.list_optimizers() lists all"
        raise InputError(f"timm has no optimizer '{name}'", where="optimizer", fix=fix)
    try:
        made: torch.optim.Optimizer = create_optimizer_v2(given, opt=name, lr=rate, weight_decay=settings.weight_decay)
    except (ImportError, TypeError, ValueError) as error:
        what = f"timm cannot make the optimizer '{name}': {type(error).__name__}: {error}"
        raise InputError(what, where="optimizer", fix="take another, such as adamw") from error
    return made


def rate_factor(done: float, warmup: float, schedule: Literal["cosine", "constant"] = "cosine") -> float:
    """The learning rate's factor after the share ``done`` of all steps: linear warm-up, then half a cosine or 1."""
    if done < warmup:
        return done / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


class Average:
    """Torch's moving average of parameters, with a decay that grows from 0.1 to ``decay``, so that it starts quickly.

    After t steps it is min(decay, (1 + t)/(10 + t)), as in TensorFlow's ExponentialMovingAverage and in timm's.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        def average(averages: Any, current: Any, steps: Tensor | int) -> None:
            weight = 1.0 - min(decay, (1.0 + int(steps)) / (10.0 + int(steps)))
            torch._foreach_lerp_(averages, current, weight)

        self._parameters = nn.ParameterList(parameters.values())
        self._model = AveragedModel(self._parameters, multi_avg_fn=average)
        self.tensors: dict[str, Tensor] = dict(
            zip(parameters, map(Tensor.detach, self._model.parameters()), strict=True)
        )

    def update(self, step: int) -> None:
        """Take in the parameters after ``step`` steps, counted from 1."""
        self._model.n_averaged.fill_(step)  # at 0 torch would copy; a resumed run goes on
        self._model.update_parameters(self._parameters)

    @torch.no_grad()
    def swap(self) -> None:
        """Put the average where the parameters are, and the parameters where it was."""
        for mine, parameter in zip(self.tensors.values(), self._parameters, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(mine)
            mine.copy_(kept)
