"""The Hessian trace of weights, by Hutchinson's estimator."""

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

Loss = Callable[[Tensor], Tensor]
"""From a batch of outputs to a scalar: the sum over its examples."""

OWN_TOP1: Loss = functools.partial(CLASSIFICATION.calibration_loss, "cross_entropy")
"""The cross-entropy against the model's own top-1, which needs no labels."""

TOLERANCE = 1e-3


@dataclass(frozen=True)
class Trace:
    """An estimate of tr(d²L/dW²) for one weight W, or for several as one.

    Attributes:
        value: the mean over the probes; the Hessian of a network is not positive, and neither must its trace be.
        standard_error: of ``value``, from the spread of the probes; NaN after one.
        probes: how many there were.
        parameters: elements of W.
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
    tolerance: float = TOLERANCE,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Trace]:
    """tr(H) = E[vᵀHv], v of random signs (Hutchinson 1990; HAWQ-V2, Dong et al. 2020, section 3.2, Eq. 8).

    H is the block of d²L/dW² that belongs to one weight, L the mean of ``loss`` over all images. One probe serves all
    weights: their signs are independent, so what blocks have in common vanishes in the mean. Every batch has signs of
    its own, which estimates the same mean over images with less variance than signs that all share [ours].

    Args:
        model: in eval mode, with operations that can be differentiated twice; frozen weights are no obstacle.
        weights: names of parameters, as ``model.named_parameters()`` has them; or groups of them by name, each of
            which has one trace, the sum of its parameters' own.
        batches: images (B, C, H, W) in the model's dtype, on its device; iterated anew for every probe.
        loss: what is differentiated; by default the cross-entropy against the float model's own top-1.
        probes: at most, at least 1.
        tolerance: stop where the last probe moved no running mean of a trace by more than this share of it.
        seed: of the signs.
        advance: is told how many probes are done.

    Raises:
        InputError: an operation without a second derivative, or no image.
    """
    groups = weights if isinstance(weights, Mapping) else {name: (name,) for name in weights}
    known = {name: model.get_parameter(name) for names in groups.values() for name in names}
    forms: dict[str, list[float]] = {group: [] for group in groups}
    with _differentiable(known.values()):
        for probe in range(probes):
            found = _quadratic_forms(model, known, batches, loss, (seed, probe))
            for group, names in groups.items():
                forms[group].append(sum(found[name] for name in names))
            if advance is not None:
                advance(probe + 1)
            if all(_settled(values, tolerance) for values in forms.values()):
                break
    sizes = {group: sum(known[name].numel() for name in names) for group, names in groups.items()}
    return {group: _trace(values, sizes[group]) for group, values in forms.items()}


def signs(like: Tensor, *key: object) -> Tensor:
    """A Rademacher vector: −1 or 1 with equal chances, in the shape of ``like``, the same on every device."""
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
        gradients = torch.autograd.grad(loss(model(batch)), tensors, create_graph=True, materialize_grads=True)
        slope = sum(((g * v).sum() for g, v in zip(gradients, probes, strict=True)), batch.new_zeros(()))
        if slope.requires_grad:  # else L is linear in the weights, and H is zero
            for name, product, v in zip(weights, _second(slope, tensors), probes, strict=True):
                totals[name] += float((product * v).sum(dtype=torch.float64))
        images += len(batch)
    if not images:
        raise InputError("there are no images to take a Hessian on", fix="give batches that can be iterated again")
    return {name: total / images for name, total in totals.items()}


def _second(slope: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    try:
        _check_twice(slope)
        return torch.autograd.grad(slope, tensors, materialize_grads=True)
    except RuntimeError as error:
        if not any(word in str(error) for word in ("derivative", "differentia", "double backward")):
            raise
        raise InputError(
            f"the model has an operation without a second derivative: {str(error).splitlines()[0]}",
            where="Hessian trace",
            fix="leave out the Hessian, or write the operation with torch's own functions",
        ) from error


def _check_twice(slope: Tensor) -> None:
    """Refuse functions marked ``once_differentiable``: torch.autograd.grad takes their second derivative for zero."""
    seen, left = set(), [slope.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            raise RuntimeError("a function marked with @once_differentiable")
        seen.add(node)
        left += [following for following, _ in node.next_functions]


def _settled(values: Sequence[float], tolerance: float) -> bool:
    if len(values) < 2:
        return False
    before, now = fmean(values[:-1]), fmean(values)
    return abs(now - before) <= tolerance * abs(now)


def _trace(values: Sequence[float], parameters: int) -> Trace:
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return Trace(fmean(values), error, len(values), parameters)


@contextmanager
def _differentiable(weights: Iterable[Tensor]) -> Iterator[None]:
    """Within it, gradients flow to these weights, and fused attention, which has no second derivative, is not fused."""
    frozen = [weight for weight in weights if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
