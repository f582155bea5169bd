"""Quantization of one site at a time, and its effect on the logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qplug.core.errors import InputError
from qplug.core.task import CLASSIFICATION, Task
from qplug.models.surgery import replace
from qplug.quantization.backends import Backend
from qplug.quantization.plan import Decision, Plan


@dataclass
class Effect:
    """Difference from the float model's logits, summed batch by batch so that logits of all sites need no memory.

    Attributes:
        images: number of images so far.
        agreeing: number of images with the float model's top-1.
        signal: Σy² of the float logits.
        noise: Σ(y − ŷ)².
    """

    images: int = 0
    agreeing: int = 0
    signal: float = 0.0
    noise: float = 0.0
    task: Task = CLASSIFICATION

    def add(self, float_: Tensor, quantized: Tensor) -> None:
        """Add a batch of outputs, (B, …) each."""
        signal, noise = self.task.energies(float_, quantized)
        self.images += len(float_)
        self.agreeing += self.task.agreement(float_, quantized)
        self.signal += float(signal.sum())
        self.noise += float(noise.sum())

    @property
    def drop(self) -> float:
        """Share of images whose top-1 differs from the float model's: 1 − agreement."""
        return 1.0 - self.agreeing / self.images

    @property
    def logit_sqnr_db(self) -> float:
        """10·log10(Σy²/Σ(y − ŷ)²) over all images and classes; +inf if they are equal."""
        if self.noise == 0.0:
            return math.inf
        return 10.0 * math.log10(self.signal / self.noise) if self.signal else -math.inf


def one_at_a_time(
    model: nn.Module,
    backend: Backend,
    decisions: Iterable[Decision],
    batches: Iterable[Tensor],
    advance: Callable[[int], None] | None = None,
    task: Task = CLASSIFICATION,
) -> dict[str, Effect]:
    """Quantize each site alone, everything else in float, and compare outputs.

    The float outputs of a batch are computed once for all sites. Each image is decoded once. One batch is in memory at
    a time.

    Args:
        model: float model (eval mode, attention explicit); unchanged afterwards.
        backend: executes each quantized operation.
        decisions: one for each site.
        batches: images (B, C, H, W) float32, iterated once.
        advance: called with the number of finished sites, counted over all batches.
        task: of the outputs.

    Returns:
        Name of each site → its effect.
    """
    effects = {decision.site.name: (decision, Effect(task=task)) for decision in decisions}
    done = 0
    with torch.no_grad():
        for images in batches:
            float_ = model(images)
            for decision, effect in effects.values():
                with quantized(model, backend, decision):
                    effect.add(float_, model(images))
                done += 1
                if advance is not None:
                    advance(done)
    return {name: effect for name, (_, effect) in effects.items()}


def refusal(model: nn.Module, backend: Backend, decision: Decision) -> str | None:
    """The reason why the backend cannot quantize this site, ``None`` if it can. Needs no forward."""
    try:
        with quantized(model, backend, decision):
            return None
    except InputError as error:
        return error.what


@contextmanager
def quantized(model: nn.Module, backend: Backend, decision: Decision) -> Iterator[None]:
    """Context in which this one site of ``model`` is quantized; its operation is restored afterwards.

    Copies no parameters: the backend replaces the operation and reuses its parameters. This takes 1 to 3 ms; a forward
    of DeiT-Ti on 32 images takes 600 ms.
    """
    path = decision.site.module
    original = model.get_submodule(path)
    try:
        backend.apply(model, Plan({decision.site.name: decision}))
        with backend.inference(model):
            yield
    finally:
        replace(model, model.get_submodule(path), original)
