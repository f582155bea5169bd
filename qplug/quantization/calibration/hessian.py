"""Hessian traces of weights by Hutchinson's estimator."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qplug.core.errors import InputError
from qplug.core.seeding import seeded
from qplug.core.task import CLASSIFICATION
from qplug.core.text import listed
from qplug.quantization.calibration.gradients import CAUSES

Loss = Callable[[Tensor], Tensor]
"""A batch of outputs → the sum of the loss over its examples, ()."""

OWN_TOP1: Loss = functools.partial(CLASSIFICATION.calibration_loss, "cross_entropy")
"""The cross-entropy against the model's own top-1, which needs no labels."""

TRACE_TOLERANCE = 1e-3
"""Relative change of a trace's running mean below which no further probe is drawn."""


@dataclass(frozen=True)
class Trace:
    """An estimate of tr(d²L/dW²) for one weight W, or for a group of weights.

    Attributes:
        value: the mean over the probes. It may be negative, because a network's Hessian may be indefinite.
        standard_error: standard error of ``value`` over the probes; NaN after one probe.
        probes: number of probes.
        parameters: number of elements of W.
    """

    value: float
    standard_error: float
    probes: int
    parameters: int

    @property
    def per_parameter(self) -> float:
        """The mean eigenvalue of the Hessian (HAWQ-V2's average trace)."""
        return self.value / self.parameters


def hessian_traces(
    model: nn.Module,
    weights: Sequence[str] | Mapping[str, Sequence[str]],
    batches: Iterable[Tensor],
    loss: Loss = OWN_TOP1,
    *,
    probes: int = 32,
    tolerance: float = TRACE_TOLERANCE,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Trace]:
    """tr(H) = E[vᵀHv] with random signs v (Hutchinson 1990; HAWQ-V2, Dong et al. 2020, section 3.2, Eq. 8).

    H is the block of d²L/dW² for one weight, and L the mean of ``loss`` over all images. One probe serves all weights:
    their signs are independent, so the contributions of off-diagonal blocks have mean zero. Each batch has its own
    signs. This estimates the same mean over images with less variance than common signs [ours].

    Args:
        model: a model in eval mode whose operations are twice differentiable; its weights may be frozen.
        weights: names from ``model.named_parameters()``; or group → names. The trace of a group is the sum of the
            traces of its parameters.
        batches: images (B, C, H, W) in the model's dtype, on its device; iterated again for every probe.
        loss: the differentiated loss; by default the cross-entropy against the float model's own top-1.
        probes: largest number of probes, at least 1.
        tolerance: stop if the last probe changed no running mean of a trace by more than this share of the mean.
        seed: seed of the signs.
        advance: called with the number of finished probes.

    Raises:
        InputError: an operation has no second derivative, or there are no images.
    """
    groups = weights if isinstance(weights, Mapping) else {name: (name,) for name in weights}
    parameters = {name: model.get_parameter(name) for names in groups.values() for name in names}
    forms: dict[str, list[float]] = {group: [] for group in groups}
    with _differentiable(parameters.values()):
        for probe in range(probes):
            values_of_probe = _quadratic_forms(model, parameters, batches, loss, (seed, probe))
            for group, names in groups.items():
                forms[group].append(sum(values_of_probe[name] for name in names))
            if advance is not None:
                advance(probe + 1)
            if all(_converged(values, tolerance) for values in forms.values()):
                break
    sizes = {group: sum(parameters[name].numel() for name in names) for group, names in groups.items()}
    return {group: _trace(values, sizes[group]) for group, values in forms.items()}


def signs(like: Tensor, *key: object) -> Tensor:
    """A Rademacher vector: −1 or 1 with equal probability, in the shape of ``like``, equal on all devices."""
    with seeded("hessian", *key):
        drawn = torch.randint(0, 2, like.shape, dtype=torch.int8)
    return drawn.to(like.device, like.dtype).mul_(2).sub_(1)


def _quadratic_forms(
    model: nn.Module, weights: Mapping[str, Tensor], batches: Iterable[Tensor], loss: Loss, key: tuple[int, int]
) -> dict[str, float]:
    """vᵀHv of every weight for one probe, the mean over images."""
    totals, images = dict.fromkeys(weights, 0.0), 0
    tensors = list(weights.values())
    for index, batch in enumerate(batches):
        probes = [signs(tensor, *key, index, name) for name, tensor in weights.items()]
        gradients = _first_gradients(model, weights, batch, loss)
        slope = sum(((g * v).sum() for g, v in zip(gradients, probes, strict=True)), batch.new_zeros(()))
        if slope.requires_grad:  # otherwise L is linear in the weights, and H is zero
            for name, product, v in zip(weights, _second_gradients(slope, tensors), probes, strict=True):
                totals[name] += float((product * v).sum(dtype=torch.float64))
        images += len(batch)
    if not images:
        raise InputError(
            "a Hessian trace needs at least one image, and there are no images",
            fix="provide batches that can be iterated more than once",
        )
    return {name: total / images for name, total in totals.items()}


def _first_gradients(model: nn.Module, weights: Mapping[str, Tensor], batch: Tensor, loss: Loss) -> list[Tensor]:
    """Gradients g of every weight; zeros for a weight without influence.

    Raises:
        InputError: a weight has an influence on the outputs, and no gradient.
    """
    tensors, total = list(weights.values()), loss(model(batch))
    found: Sequence[Tensor | None] = [None] * len(tensors)
    if total.requires_grad:
        found = torch.autograd.grad(total, tensors, create_graph=True, allow_unused=True)
    without = [name for name, gradient in zip(weights, found, strict=True) if gradient is None]
    blocked = [name for name in without if _has_influence(model, weights[name], batch)]
    if blocked:
        raise InputError(
            f"the outputs depend on {listed(blocked)} without a gradient: {CAUSES}",
            where="Hessian trace",
            fix="leave out the Hessian, or remove it from the forward",
        )
    return [torch.zeros_like(w) if g is None else g for w, g in zip(tensors, found, strict=True)]


@torch.no_grad()
def _has_influence(model: nn.Module, weight: Tensor, batch: Tensor) -> bool:
    """Whether the outputs change if every element of ``weight`` does."""
    before, kept = model(batch), weight.clone()
    weight.mul_(2.0).add_(1.0)
    after = model(batch)
    weight.copy_(kept)
    return not torch.equal(before, after)


def _second_gradients(slope: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of ``slope`` = gᵀv, where g is the first gradient: the products Hv."""
    try:
        _check_twice_differentiable(slope)
        return torch.autograd.grad(slope, tensors, materialize_grads=True)
    except RuntimeError as error:
        if not any(word in str(error) for word in ("derivative", "differentia", "double backward")):
            raise
        raise InputError(
            f"the model has an operation without a second derivative: {str(error).splitlines()[0]}",
            where="Hessian trace",
            fix="leave out the Hessian, or implement the operation with torch's functions",
        ) from error


def _check_twice_differentiable(slope: Tensor) -> None:
    """Refuse ``once_differentiable`` functions: torch.autograd.grad treats their second derivatives as zero."""
    visited, pending = set(), [slope.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in visited:
            continue
        if node.name() == "torch::autograd::Error":
            raise RuntimeError("a function marked with @once_differentiable")
        visited.add(node)
        pending += [following for following, _ in node.next_functions]


def _converged(values: Sequence[float], tolerance: float) -> bool:
    if len(values) < 2:
        return False
    before, now = fmean(values[:-1]), fmean(values)
    return abs(now - before) <= tolerance * abs(now)


def _trace(values: Sequence[float], parameters: int) -> Trace:
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return Trace(fmean(values), error, len(values), parameters)


@contextmanager
def _differentiable(weights: Iterable[Tensor]) -> Iterator[None]:
    """A context in which these weights require gradients and attention is not fused.

    Fused attention has no second derivative.
    """
    frozen = [weight for weight in weights if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
