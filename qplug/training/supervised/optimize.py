"""timm's optimizers, the learning-rate schedule, and the moving average of the learned parameters."""

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
    """The recipe's optimizer. Parameters with at most one axis do not decay, except bounds, as in PACT's paper.

    Args:
        settings: optimizer, rate and decay.
        weights: name → parameter of the model.
        bounds: the names in ``weights`` that are bounds of activations.
        scales: name → parameter of a quantizer; ``Learn.rate`` is its relative rate.

    Raises:
        InputError: timm does not have the optimizer, or refuses these values.
    """
    from timm.optim import create_optimizer_v2, list_optimizers

    decay = [p for name, p in weights.items() if p.dim() > 1 or name in bounds]
    rest = [p for name, p in weights.items() if not (p.dim() > 1 or name in bounds)]
    groups = [(decay, settings.weight_decay), (rest, 0.0), (list(scales.values()), 0.0)]
    name, rate = settings.optimizer, settings.learning_rate
    param_groups = [{"params": group, "weight_decay": decay, "lr": rate} for group, decay in groups if group]
    if name not in list_optimizers():
        fix = did_you_mean(name, list_optimizers()) or "timm.optim.list_optimizers() lists all"
        raise InputError(f"timm has no optimizer '{name}'", where="optimizer", fix=fix)
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            param_groups, opt=name, lr=rate, weight_decay=settings.weight_decay
        )
    except (ImportError, TypeError, ValueError) as error:
        message = f"timm cannot create the optimizer '{name}': {type(error).__name__}: {error}"
        raise InputError(message, where="optimizer", fix="choose another optimizer, such as adamw") from error
    return optimizer


def rate_factor(done: float, warmup: float, schedule: Literal["cosine", "constant"] = "cosine") -> float:
    """The factor of the learning rate after the share ``done`` of all steps: linear warm-up, then half a cosine or 1.

    This function replaces torch's schedulers, which have a state; some compute each rate from the previous one. It
    depends on the step alone, so a resumed training has exactly the rates of an uninterrupted one.
    """
    if done < warmup:
        return done / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


class Average:
    """torch's moving average of parameters, with a small decay in the first steps.

    After t steps the decay is min(``decay``, (1 + t)/(10 + t)), as in TensorFlow's ExponentialMovingAverage and in
    timm's.
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
        """Add the parameters after ``step`` steps (counted from 1) to the average."""
        self._model.n_averaged.fill_(step)  # at 0 torch would copy; a resumed run continues at its step
        self._model.update_parameters(self._parameters)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the values of the average and of the parameters."""
        for average, parameter in zip(self.tensors.values(), self._parameters, strict=True):
            before = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(before)
