"""Reconstruction loop of AdaRound, BRECQ and Mr.BiQ: Adam minimizes a block's output error and rounds soft bits."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from qplug.core.errors import PluginError
from qplug.training.reconstruction.capture import Calls
from qplug.training.reconstruction.config import Reconstruction
from qplug.training.reconstruction.iteration import GraphedIteration, Iteration
from qplug.training.reconstruction.losses import OutputLoss
from qplug.training.reconstruction.objective import compiling


def learn(block: nn.Module, settings: Reconstruction, calls: Calls, inputs: Tensor, loss: OutputLoss) -> None:
    """Train the parameters of ``settings.learners``, which are parts of ``block``; its other parameters are frozen.

    If the block and the calls are on a CUDA device, iterations are replays of a CUDA graph.

    Args:
        block: the lowered block; its weights get no gradient.
        settings: learners, rates and schedule.
        calls: inputs and outputs of the float block.
        inputs: (entries, …) inputs of the block in the quantized model, on the device of ``calls``.
        loss: loss of the block's output, prepared, on the device of ``calls``.

    Raises:
        PluginError: the error is not finite, or an iteration cannot be captured or compiled.
    """
    block.requires_grad_(False)
    graphed = settings.graph and inputs.is_cuda
    optimizer, schedule = _optimizer(settings, inputs.device if graphed else None)
    batch, iterations = min(settings.batch_size * calls.entries, len(inputs)), settings.iterations
    iteration = Iteration(block, settings, calls, inputs, loss, optimizer, batch)
    iterate: Callable[[bool], None] = GraphedIteration(iteration) if graphed else iteration
    batches = _random_batches(len(inputs), batch)
    with compiling() if settings.compile else nullcontext():
        for done in range(iterations):
            iteration.images.copy_(next(batches))
            beta = _beta(done / iterations, settings)
            if beta is not None:
                iteration.beta.fill_(beta)
            iterate(beta is not None)
            schedule.step()
    finite = int(iteration.finite)
    if finite < iterations:
        raise PluginError(
            f"the reconstruction error is not finite from iteration {finite} of {iterations} on",
            fix="lower the learning rates",
        )


def _optimizer(
    settings: Reconstruction, graphed_on: torch.device | None
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam with one rate for each name in ``Learner.learned``, and the schedule of the rates.

    With ``graphed_on``, the rates are tensors on this device, from which a CUDA graph reads them.
    """
    parameters: dict[str, list[nn.Parameter]] = defaultdict(list)
    for learner in settings.learners.values():
        for name, learned in learner.learned().items():
            parameters[name] += learned
    for parameter in chain.from_iterable(parameters.values()):
        parameter.requires_grad_(True)
    rates = [settings.rates[name] for name in parameters]
    starts = [float(rate.start) for rate in rates]  # a Python int would become an integer tensor
    groups = [
        {"params": group, "lr": start if graphed_on is None else torch.tensor(start, device=graphed_on)}
        for group, start in zip(parameters.values(), starts, strict=True)
    ]
    optimizer = torch.optim.Adam(groups, fused=True, capturable=graphed_on is not None)
    factors: list[Callable[[int], float]] = [
        partial(_cosine, settings.iterations) if rate.cosine else _constant for rate in rates
    ]
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factors)


def _cosine(iterations: int, step: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * step / iterations))


def _constant(step: int) -> float:
    return 1.0


def _beta(done: float, settings: Reconstruction) -> float | None:
    """The penalty's exponent after the share ``done`` of the iterations; ``None`` during the warm-up."""
    if done < settings.warmup:
        return None
    first, last = settings.beta
    return last + (first - last) * (1.0 - (done - settings.warmup) / (1.0 - settings.warmup))


def _random_batches(entries: int, batch: int) -> Iterator[Tensor]:
    """Batches of entry indices on the CPU, cut from random permutations; a permutation's remainder is dropped."""
    while True:
        yield from torch.split(torch.randperm(entries)[: entries // batch * batch], batch)
