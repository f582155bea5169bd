"""The calibration pass: one forward over the images, and one backward if a technique needs gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from qplug.core.errors import InputError
from qplug.core.task import CLASSIFICATION, Task
from qplug.core.types import Site, SiteKind, Smoothing
from qplug.models.attention import MatMul
from qplug.models.batch_axes import BatchAxes, axes_and_batches, batch_first
from qplug.models.tracing import is_norm
from qplug.quantization.calibration.running_ranges import RunningRanges
from qplug.quantization.calibration.samplers import PRODUCTS, OperationSampler, SampleSize, sampler_of
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
            InputError: an activation is not finite; the error names the first such site.
        """
        self._axes, batches = axes_and_batches(self.model, self.samplers, batches)
        alone = loss is not None and self._axes.any_constant
        handles = [
            self.model.get_submodule(name).register_forward_hook(self._hook(name, operation))
            for name, operation in self.samplers.items()
        ]
        if loss is not None:
            for name in self.samplers:
                module = self.model.get_submodule(name)
                if self._axes.of(name).constant and not isinstance(module, PRODUCTS):
                    handles.append(module.register_forward_pre_hook(_leaf))
                if is_norm(module):
                    handles.append(module.register_forward_pre_hook(_branch))
            tables = (module for module in self.model.modules() if isinstance(module, nn.Embedding))
            handles += [table.register_forward_hook(_trace_output) for table in tables]
        frozen = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        done = 0
        try:
            for batch in chain.from_iterable(torch.split(batch, 1) if alone else (batch,) for batch in batches):
                for operation in self.samplers.values():
                    operation.begin_batch(done, len(batch))
                if loss is None:
                    with torch.no_grad():
                        self.model(batch)
                else:
                    with torch.enable_grad():
                        # no local name for the loss: it would hold the batch's graph during the next batch
                        self._task.sum_of_losses(loss, self.model(_traced(batch)), done, self._seed).backward()  # type: ignore[no-untyped-call]
                done += len(batch)
                self._check_finite()
                if advance is not None:
                    advance(done)
        finally:
            for handle in handles:
                handle.remove()
            for parameter in frozen:
                parameter.requires_grad_(True)

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

        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
            axes = self._axes.of(name, operation.call)
            with torch.no_grad():
                for index, (ranges, x) in enumerate(zip(operand_ranges, args, strict=False)):
                    if ranges is not None:
                        axis = axes.of(index)
                        known = axis is None and operation.first > 0
                        ranges.update(batch_first(x.detach(), axis), operation.batch, axis is None, known)
            leaf = None
            if axes.constant and torch.is_grad_enabled() and not out.requires_grad and out.is_floating_point():
                leaf = out = out.requires_grad_(True)  # nothing before a constant requires gradients
            operation.record(module, args, out, axes)
            operation.call += 1
            return None if leaf is None else leaf.clone()  # a copy, because a leaf forbids operations in place

        return hook

    def _check_finite(self) -> None:
        for name, ranges in self.ranges.items():
            if not (torch.isfinite(ranges.low).all() and torch.isfinite(ranges.high).all()):
                raise InputError(
                    "an activation is NaN or infinite on the calibration images",
                    where=name,
                    fix="check the checkpoint and the images for NaN, and the model for an overflow of float32",
                )


def _traced(batch: Tensor) -> Tensor:
    """The batch with ``requires_grad``, so that autograd records the forward although all parameters are frozen.

    Tokens are unchanged: for them, autograd records from the embeddings on.
    """
    return batch.detach().requires_grad_(True) if batch.is_floating_point() else batch


def _branch(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A view of a norm's input, so that its gradient is the norm's alone and not the sum over all readers."""
    return (args[0].view_as(args[0]), *args[1:])


def _leaf(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same with a gradient for a constant, before which nothing requires one."""
    x = args[0]
    return (x.detach().requires_grad_(True) if torch.is_grad_enabled() and not x.requires_grad else x, *args[1:])


def _trace_output(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    return out.requires_grad_(True)


def watched_sites(sites: Iterable[Site], softmax: bool, layernorm: bool) -> list[Site]:
    """The calibrated sites of a recipe: inputs of Softmax and LayerNorm are optional, all other sites are included."""
    included = {SiteKind.SOFTMAX_INPUT: softmax, SiteKind.LAYERNORM_INPUT: layernorm}
    return [site for site in sites if included.get(site.kind, True)]
