"""The calibration pass: one forward over the images, one backward where a technique asks, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qplug.core.errors import InputError
from qplug.core.task import CLASSIFICATION, Task
from qplug.core.types import Site, SiteKind, Smoothing
from qplug.models.attention import MatMul
from qplug.models.tracing import is_norm
from qplug.quantization.calibration.running_ranges import RunningRanges
from qplug.quantization.calibration.samplers import OperationSampler, SampleSize, sampler_of
from qplug.quantization.calibration.statistics import SiteStats


class Calibration:
    """Statistics of every site of a model.

    Args:
        model: the float model (eval mode, attention explicit).
        sites: the sites to watch.
        images: how many images will be shown, which fixes how many rows each contributes to the samples.
        seed: chooses the rows.
        size: the caps of the samples.
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
        self._seed = seed
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
        """Show the batches: images (B, C, H, W) float32, or texts (B, 3, L) int64.

        With ``loss`` also take its gradient at every sampled output.

        Raises:
            InputError: an activation that is not finite, with the site where it first appears.
        """
        handles = [
            self.model.get_submodule(name).register_forward_hook(self._hook(name, operation))
            for name, operation in self.samplers.items()
        ]
        if loss is not None:
            norms = (self.model.get_submodule(name) for name in self.samplers)
            handles += [norm.register_forward_pre_hook(_branch) for norm in norms if is_norm(norm)]
            tables = (module for module in self.model.modules() if isinstance(module, nn.Embedding))
            handles += [table.register_forward_hook(_trace_output) for table in tables]
        frozen = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        done = 0
        try:
            for batch in batches:
                for operation in self.samplers.values():
                    operation.begin(done, len(batch))
                if loss is None:
                    with torch.no_grad():
                        self.model(batch)
                else:
                    with torch.enable_grad():
                        # nothing of a batch's graph may be left, by a name either, when the next one comes
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
        """The statistics of ``site``. Weights are read from the model as it is now."""
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
        """Follow a smoothing of the inputs of these linears: ranges and samples become those of (Y − shift)/scale."""
        for module in norm_inputs:
            name = f"{module}.input"
            if name in self.ranges:
                self.ranges[name].smooth(smoothing)
                self.samplers[module].smooth(smoothing)

    def _hook(self, name: str, operation: OperationSampler) -> Any:
        roles = ("lhs", "rhs") if isinstance(self.model.get_submodule(name), MatMul) else ("input",)
        watched = [self.ranges.get(f"{name}.{role}") for role in roles]

        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            with torch.no_grad():
                for ranges, tensor in zip(watched, args, strict=False):
                    if ranges is not None:
                        ranges.update(tensor.detach(), operation.batch)
            operation.record(module, args, out)

        return hook

    def _check_finite(self) -> None:
        for name, ranges in self.ranges.items():
            if not (torch.isfinite(ranges.low).all() and torch.isfinite(ranges.high).all()):
                raise InputError(
                    "an activation is NaN or infinite on the calibration images",
                    where=name,
                    fix="look for NaN in the checkpoint and in the images, or for a model that overflows float32",
                )


def _traced(batch: Tensor) -> Tensor:
    """The batch, from which a graph grows although every parameter is frozen; of tokens it grows from embeddings."""
    return batch.detach().requires_grad_(True) if batch.is_floating_point() else batch


def _branch(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a norm reads as a tensor of its own: the gradient of a residual stream is that of all who read it."""
    return (args[0].view_as(args[0]), *args[1:])


def _trace_output(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    return out.requires_grad_(True)


def watched_sites(sites: Iterable[Site], softmax: bool, layernorm: bool) -> list[Site]:
    """The sites of a recipe's scope: all but the inputs of Softmax and LayerNorm, which it may ask for."""
    wanted = {SiteKind.SOFTMAX_INPUT: softmax, SiteKind.LAYERNORM_INPUT: layernorm}
    return [site for site in sites if wanted.get(site.kind, True)]
