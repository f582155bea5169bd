"""The loop that AdaRound, BRECQ and Mr.BiQ share: Adam on a block's output error, soft bits pushed to 0 or 1."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from qplug.errors import PluginError
from qplug.reconstruct.capture import Calls
from qplug.reconstruct.learners import Learner
from qplug.reconstruct.losses import OutputLoss
from qplug.reconstruct.settings import Reconstruction


class Dropped(Learner):
    """QDrop (Wei et al. 2022, Eq. 8): each element is quantised with probability ``keep`` and else passes in float."""

    def __init__(self, quantizer: nn.Module, keep: float) -> None:
        super().__init__()
        self.quantizer, self.keep = quantizer, keep
        self.bits = int(getattr(quantizer, "bits", 0))

    def forward(self, x: Tensor) -> Tensor:
        """A mixture of ``x`` and of ``x`` fake-quantised, drawn anew."""
        return mix(self.quantizer(x), x, self.keep)


def mix(quantized: Tensor, float_: Tensor, keep: float) -> Tensor:
    """Each element from ``quantized`` with probability ``keep``, and else from ``float_``."""
    return torch.where(torch.rand_like(float_) < keep, quantized, float_)


def learn(
    block: nn.Module,
    settings: Reconstruction,
    float_calls: Calls,
    quantized_inputs: Tensor,
    loss: OutputLoss,
) -> None:
    """Learn the parameters of ``settings.learners``, which ``block`` holds; everything else of it stands still.

    Args:
        block: the lowered block; its weights get no gradient.
        settings: learners, rates and schedule.
        float_calls: what the float block is given and gives.
        quantized_inputs: (images, …) what the quantised model before it gives.
        loss: that of its output's error, prepared.

    Raises:
        PluginError: the error is not finite any more.
    """
    device = next(block.parameters()).device
    block.requires_grad_(False)
    groups, cosines = [], []
    for learner in settings.learners.values():
        for name, parameters in learner.learned().items():
            rate = settings.rates[name]
            groups.append({"params": [p.requires_grad_(True) for p in parameters], "lr": rate.start})
            cosines.append(rate.cosine)
    optimizer = torch.optim.Adam(groups)
    whole = settings.iterations
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, [partial(_cosine, whole) if cosine else _constant for cosine in cosines]
    )
    draws = _draws(len(quantized_inputs), settings.batch_size)
    errors: list[Tensor] = []
    for step in range(whole):
        images = next(draws)
        inputs = quantized_inputs[images].to(device)
        if settings.keep < 1.0:
            inputs = mix(inputs, float_calls.inputs[images].to(device), settings.keep)
        args, kwargs = float_calls.arguments(inputs, images)
        with torch.enable_grad():
            error = loss(block(*args, **kwargs) - float_calls.outputs[images].to(device), images)
            errors.append(error.detach())
            beta = _beta(step / whole, settings)
            if beta is not None:
                error = error + settings.weight * sum(learner.penalty(beta) for learner in settings.learners.values())
            optimizer.zero_grad()
            error.backward()
        optimizer.step()
        schedule.step()
    broken = (~torch.isfinite(torch.stack(errors))).nonzero()
    if len(broken):
        raise PluginError(
            f"the reconstruction error is not finite from iteration {int(broken[0])} of {whole} on",
            fix="lower the learning rates",
        )


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


def _draws(images: int, batch: int) -> Iterator[Tensor]:
    """Batches of image numbers: every image once before any comes again."""
    batch = min(batch, images)
    while True:
        yield from torch.split(torch.randperm(images)[: images // batch * batch], batch)
