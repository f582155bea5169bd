"""One site quantized at a time: what it alone does to the logits."""

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
    """How far logits moved from the float model's, summed up batch by batch: logits of all sites are never kept.

    Attributes:
        images: seen so far.
        agreeing: images whose top-1 is still the float model's.
        signal: Σy² of the float logits.
        noise: Σ(y − ŷ)².
    """

    images: int = 0
    agreeing: int = 0
    signal: float = 0.0
    noise: float = 0.0
    task: Task = CLASSIFICATION

    def add(self, float_: Tensor, quantized: Tensor) -> None:
        """Take in a batch of logits, (B, classes) or (B, 2, L) each."""
        signal, noise = self.task.energies(float_, quantized)
        self.images += len(float_)
        self.agreeing += self.task.agreement(float_, quantized)
        self.signal += float(signal.sum())
        self.noise += float(noise.sum())

    @property
    def drop(self) -> float:
        """Share of images whose top-1 is no longer the float model's: 1 − agreement."""
        return 1.0 - self.agreeing / self.images

    @property
    def logit_sqnr_db(self) -> float:
        """10·log10(Σy²/Σ(y − ŷ)²) over all images and classes; +inf where nothing was lost."""
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

    The float outputs of a batch are computed once, every image is decoded once whatever the number of sites, and one
    batch is in memory at a time.

    Args:
        model: the float model (eval mode, attention explicit); as it was when this returns.
        backend: executes each quantized operation.
        decisions: one for each site.
        batches: images (B, C, H, W) float32, iterated once.
        advance: is told how many sites are done, counted over all batches.
        task: what the outputs are.

    Returns:
        The effect of each site, by its name.
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
    """Why the backend cannot execute this site quantized; ``None`` where it can. Found without a forward."""
    try:
        with quantized(model, backend, decision):
            return None
    except InputError as error:
        return error.what


@contextmanager
def quantized(model: nn.Module, backend: Backend, decision: Decision) -> Iterator[None]:
    """Within it, ``model`` has this one site quantized; the operation that reads it is put back afterwards.

    Copies nothing: a backend replaces the operation and keeps its parameters (1 to 3 ms, where a forward of DeiT-Ti on
    32 images takes 600).
    """
    path = decision.site.module
    original = model.get_submodule(path)
    try:
        backend.apply(model, Plan({decision.site.name: decision}))
        with backend.inference(model):
            yield
    finally:
        replace(model, model.get_submodule(path), original)
