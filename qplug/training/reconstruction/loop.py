"""The loop that AdaRound, BRECQ and Mr.BiQ share: Adam on a block's output error, soft bits pushed to 0 or 1."""

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
from qplug.training.reconstruction.iteration import Graphed, Step
from qplug.training.reconstruction.losses import OutputLoss
from qplug.training.reconstruction.objective import compiling


def learn(block: nn.Module, settings: Reconstruction, calls: Calls, inputs: Tensor, loss: OutputLoss) -> None:
    """Learn the parameters of ``settings.learners``, which ``block`` holds; everything else of it stands still.

    Where the block is on a CUDA device and so are the calls, iterations are replays of a CUDA graph.

    Args:
        block: the lowered block; its weights get no gradient.
        settings: learners, rates and schedule.
        calls: what the float block is given and gives.
        inputs: (entries, …) what the quantized model before it gives, where the calls are.
        loss: of the block's output, prepared, where the calls are.

    Raises:
        PluginError: the error is not finite any more, or an iteration cannot be captured or compiled.
    """
    block.requires_grad_(False)
    graphed = settings.graph and inputs.is_cuda
    optimizer, schedule = _optimizer(settings, inputs.device if graphed else None)
    batch, whole = min(settings.batch_size * calls.entries, len(inputs)), settings.iterations
    step = Step(block, settings, calls, inputs, loss, optimizer, batch)
    iterate: Callable[[bool], None] = Graphed(step) if graphed else step
    draws = _draws(len(inputs), batch)
    with compiling() if settings.compile else nullcontext():
        for done in range(whole):
            step.images.copy_(next(draws))
            beta = _beta(done / whole, settings)
            if beta is not None:
                step.beta.fill_(beta)
            iterate(beta is not None)
            schedule.step()
    finite = int(step.finite)
    if finite < whole:
        raise PluginError(
            f"the reconstruction error is not finite from iteration {finite} of {whole} on",
            fix="lower the learning rates",
        )


def _optimizer(
    settings: Reconstruction, graphed_on: torch.device | None
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam with a rate for each name of what is learned; a graph reads the rates from its device."""
    parameters: dict[str, list[nn.Parameter]] = defaultdict(list)
    for learner in settings.learners.values():
        for name, learned in learner.learned().items():
            parameters[name] += learned
    for parameter in chain.from_iterable(parameters.values()):
        parameter.requires_grad_(True)
    rates = [settings.rates[name] for name in parameters]
    starts = [float(rate.start) for rate in rates]  # a whole number would become a tensor of integers
    groups = [
        {"params": found, "lr": start if graphed_on is None else torch.tensor(start, device=graphed_on)}
        for found, start in zip(parameters.values(), starts, strict=True)
    ]
    optimizer = torch.optim.Adam(groups, fused=True, capturable=graphed_on is not None)
    factors: list[Callable[[int], float]] = [
        partial(_cosine, settings.iterations) if rate.cosine else _constant for rate in rates
    ]
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factors)


def _cosine(whole: int, step: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * step / whole))


def _constant(step: int) -> float:
    return 1.0


def _beta(done: float, settings: Reconstruction) -> float | None:
    """The penalty's exponent when this share of the iterations is ``done``; none during the warm-up."""
    if done < settings.warmup:
        return None
    first, last = settings.beta
    return last + (first - last) * (1.0 - (done - settings.warmup) / (1.0 - settings.warmup))


def _draws(entries: int, batch: int) -> Iterator[Tensor]:
    """Batches of numbers of entries, on the CPU: none twice in a permutation, whose remainder is dropped."""
    while True:
        yield from torch.split(torch.randperm(entries)[: entries // batch * batch], batch)
