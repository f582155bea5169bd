"""The calibration pass: one forward over the images, and one backward if a technique needs gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from qplug.core.errors import InputError
from qplug.core.task import CLASSIFICATION, Task
from qplug.core.text import listed
from qplug.core.types import Site, SiteKind, Smoothing
from qplug.models.attention import MatMul
from qplug.models.batch_axes import BatchAxes, axes_and_batches, batch_first
from qplug.quantization.calibration.gradients import backward, traced, traced_operations
from qplug.quantization.calibration.running_ranges import RunningRanges
from qplug.quantization.calibration.samplers import OperationSampler, SampleSize, sampler_of
from qplug.quantization.calibration.statistics import SiteStats


class Calibration:
    """Statistics of every site of a model.

    Args:
        model: the float model (eval mode, with explicit attention).
        sites: the calibrated sites.
        images: number of calibration images; it determines how many rows each image contributes to the samples.
        seed: seed of the row selection.
        size: limits of the samples.
        task: the task of the model, which defines the loss.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        images: int,
        seed: int,
        size: SampleSize | None = None,
        task: Task = CLASSIFICATION,
    ) -> None:
        self.model, self._task = model, task
        self.images = images
        self._size = size or SampleSize()
        self._seed, self._axes = seed, BatchAxes()
        self.sites = list(sites)
        self.ranges = {site.name: RunningRanges(site, images) for site in sites if not site.kind.is_weight}
        modules = dict.fromkeys(site.module for site in sites)
        self.samplers: dict[str, OperationSampler] = {
            name: sampler_of(model.get_submodule(name), images, self._size, seed + index)
            for index, name in enumerate(modules)
        }

    def collect(
        self,
        batches: Iterable[Tensor],
        loss: str | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> None:
        """Run the model on the batches: images (B, C, H, W) float32, or texts (B, 3, L) int64.

        With ``loss``, collect its gradient at every sampled output too.

        An operation whose input is the same for every image gives each of its rows once. The images then pass one by
        one if ``loss`` is given: their gradients at such an output could not be told apart.

        Raises:
            InputError: an activation is not finite, and the error names the first such site; or a module is not called.
        """
        self._axes, batches = axes_and_batches(self.model, self.samplers, batches)
        alone = loss is not None and self._axes.any_constant
        operations = {name: self.model.get_submodule(name) for name in self.samplers}
        gradients = nullcontext() if loss is None else traced_operations(self.model, operations.values())
        with gradients, ExitStack() as hooks:  # hooks that record outputs come behind those that trace them
            for name, operation in operations.items():
                hooks.callback(operation.register_forward_hook(self._hook(name, self.samplers[name])).remove)
            done = 0
            for batch in chain.from_iterable(torch.split(batch, 1) if alone else (batch,) for batch in batches):
                for sampler in self.samplers.values():
                    sampler.begin_batch(done, len(batch))
                if loss is None:
                    with torch.no_grad():
                        self.model(batch)
                else:
                    # no local name for the loss: it would hold the batch's graph during the next batch
                    backward(self._task.sum_of_losses(loss, self.model(traced(batch)), done, self._seed), loss)
                done += len(batch)
                self._check_finite()
                if advance is not None:
                    advance(done)
        if loss is not None:
            for sampler in self.samplers.values():
                sampler.complete_squares()
        self._check_called()

    def without_gradient(self) -> list[str]:
        """The operations whose outputs count alike, after a pass with a loss: its gradient does not reach them."""
        return [name for name, sampler in self.samplers.items() if sampler.inputs.length and not sampler.squares.length]

    def stats(self, site: Site) -> SiteStats:
        """The statistics of ``site``. Weights are read from the present model."""
        operation = self.samplers[site.module]
        module = self.model.get_submodule(site.module)
        product = operation.product(module)
        if site.kind.is_weight:
            weight = module.weight
            assert isinstance(weight, Tensor)
            stats = SiteStats.from_tensor(weight, site)
            stats.product, stats.to_matrix = product, operation.rhs_matrix
            return stats
        return self.ranges[site.name].stats(operation, product)

    def calls(self) -> dict[str, int]:
        """Module → its calls in one forward, of every module whose inputs were collected."""
        return {
            self.ranges[site.name].site.module: self.ranges[site.name].image_low.length // self.images
            for site in self.sites
            if site.name in self.ranges
        }

    def smooth(self, norm_inputs: Iterable[str], smoothing: Smoothing) -> None:
        """Apply a smoothing of these linears' inputs Y: ranges and samples become those of (Y − shift)/scale."""
        for module in norm_inputs:
            name = f"{module}.input"
            if name in self.ranges:
                self.ranges[name].smooth(smoothing)
                self.samplers[module].smooth(smoothing)

    def _hook(self, name: str, operation: OperationSampler) -> Any:
        roles = ("lhs", "rhs") if isinstance(self.model.get_submodule(name), MatMul) else ("input",)
        operand_ranges = [self.ranges.get(f"{name}.{role}") for role in roles]

        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            axes = self._axes.of(name, operation.call)
            with torch.no_grad():
                for index, (ranges, x) in enumerate(zip(operand_ranges, args, strict=False)):
                    if ranges is not None:
                        axis = axes.of(index)
                        known = axis is None and operation.first > 0
                        ranges.update(batch_first(x.detach(), axis), operation.batch, axis is None, known)
            operation.record(module, args, out, axes)
            operation.call += 1

        return hook

    def _check_called(self) -> None:
        missed = [name for name, sampler in self.samplers.items() if not sampler.inputs.length]
        if missed:
            raise InputError(
                f"calibration calls {listed(missed, 5)} in no forward, and the model's example did",
                where=missed[0],
                fix=f"leave it in float: quantize.overrides: [{{match: '{missed[0]}', skip: true}}]",
            )

    def _check_finite(self) -> None:
        for name, ranges in self.ranges.items():
            if not (torch.isfinite(ranges.low).all() and torch.isfinite(ranges.high).all()):
                if _is_masked(ranges):
                    raise InputError(
                        "the input of a Softmax holds −inf, as masks of attention do, and cannot be quantized",
                        where=name,
                        fix="leave it in float: quantize.scope.softmax: false, or skip it in quantize.overrides",
                    )
                raise InputError(
                    "an activation is NaN or infinite on the calibration images",
                    where=name,
                    fix="check the checkpoint and the images for NaN, and the model for an overflow of float32",
                )


def _is_masked(ranges: RunningRanges) -> bool:
    """Whether the input of a Softmax is infinite on the negative side alone."""
    is_scores = ranges.site.kind is SiteKind.SOFTMAX_INPUT
    return is_scores and bool(torch.isfinite(ranges.high).any()) and not bool(ranges.low.isnan().any())


def watched_sites(sites: Iterable[Site], softmax: bool, layernorm: bool) -> list[Site]:
    """The calibrated sites of a recipe: inputs of Softmax and LayerNorm are optional, all other sites are included."""
    included = {SiteKind.SOFTMAX_INPUT: softmax, SiteKind.LAYERNORM_INPUT: layernorm}
    return [site for site in sites if included.get(site.kind, True)]
