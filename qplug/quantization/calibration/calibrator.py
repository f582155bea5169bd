"""The calibration pass: one forward over the images, one backward where a technique asks, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qplug.core.errors import InputError
from qplug.core.task import CLASSIFICATION, Task
from qplug.core.types import Site, SiteKind, Smoothing
from qplug.models.attention import MatMul
from qplug.models.tracing import is_norm
from qplug.quantization.calibration.product import Product
from qplug.quantization.calibration.samplers import Operation, Rows, SampleSize, Shape, operation_of
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
        self._ranges = {site.name: _Ranges(site, images) for site in sites if not site.kind.is_weight}
        modules = dict.fromkeys(site.module for site in sites)
        self._operations: dict[str, Operation] = {
            name: operation_of(model.get_submodule(name), images, self._size, seed + index)
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
            for name, operation in self._operations.items()
        ]
        if loss is not None:
            norms = (self.model.get_submodule(name) for name in self._operations)
            handles += [norm.register_forward_pre_hook(_branch) for norm in norms if is_norm(norm)]
            tables = (module for module in self.model.modules() if isinstance(module, nn.Embedding))
            handles += [table.register_forward_hook(_trace_output) for table in tables]
        frozen = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        done = 0
        try:
            for batch in batches:
                for operation in self._operations.values():
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
        operation = self._operations[site.module]
        module = self.model.get_submodule(site.module)
        product = operation.product(module)
        if site.kind.is_weight:
            weight = module.weight
            assert isinstance(weight, Tensor)
            stats = SiteStats.from_tensor(weight, site)
            stats.product, stats.to_matrix = product, operation.rhs_matrix
            return stats
        return self._ranges[site.name].stats(operation, product)

    def smooth(self, norm_inputs: Iterable[str], smoothing: Smoothing) -> None:
        """Follow a smoothing of the inputs of these linears: ranges and samples become those of (Y − shift)/scale."""
        for module in norm_inputs:
            name = f"{module}.input"
            if name in self._ranges:
                self._ranges[name].smooth(smoothing)
                self._operations[module].smooth(smoothing)

    def state(self) -> dict[str, Tensor]:
        """All that ``collect`` gathered, by name, as views on the model's device; do not write to them.

        Raises ``ValueError`` after a smoothing, and where nothing was collected.
        """
        return {f"{owner}/{name}": tensor for owner, kept in self._kept() for name, tensor in kept.state().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Know all that the Calibration knew which gave ``state``, bit for bit, in the place of ``collect``.

        The tensors are copied, to the model's device: any number of Calibrations may be made from one state.

        Raises:
            ValueError: names or shapes are not those of this model, these sites and this number of images, or a
                smoothing was followed; nothing has changed then.
        """
        parts: dict[str, dict[str, Tensor]] = {owner: {} for owner, _ in self._kept()}
        for name, tensor in state.items():
            owner, _, part = name.rpartition("/")
            parts.setdefault(owner, {})[part] = tensor
        wrong = [owner for owner, part in parts.items() if _shapes(part) != self._expected(owner, part)]
        if wrong:
            raise ValueError(f"the state is not of this model, these sites and images, at {', '.join(wrong[:5])}")
        device = next(self.model.parameters()).device
        for owner, kept in self._kept():
            kept.restore({name: tensor.to(device, copy=True) for name, tensor in parts[owner].items()})

    def _kept(self) -> list[tuple[str, _Ranges | Operation]]:
        """By site or module, what a state holds; after a smoothing there is none."""
        if any(ranges.smoothings for ranges in self._ranges.values()):
            raise ValueError("a state is taken, and restored, before any smoothing")
        return [*self._ranges.items(), *self._operations.items()]

    def _expected(self, owner: str, part: Mapping[str, Tensor]) -> dict[str, Shape]:
        """The shapes that ``part`` of a state must have; none where ``owner`` is neither a site nor a module."""
        if owner in self._ranges:
            return self._ranges[owner].shapes(_length(part, "image_low"))
        if owner not in self._operations:
            return {}
        sites: dict[str, Site] = {site.role: site for site in self.sites if site.module == owner}
        shapes = self._operations[owner].shapes(self.model.get_submodule(owner), sites, _length(part, "inputs"))
        return {name: shape for name, shape in shapes.items() if name != "squares" or name in part}

    def _hook(self, name: str, operation: Operation) -> Any:
        roles = ("lhs", "rhs") if isinstance(self.model.get_submodule(name), MatMul) else ("input",)
        watched = [self._ranges.get(f"{name}.{role}") for role in roles]

        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            with torch.no_grad():
                for ranges, tensor in zip(watched, args, strict=False):
                    if ranges is not None:
                        ranges.update(tensor.detach(), operation.batch)
            operation.record(module, args, out)

        return hook

    def _check_finite(self) -> None:
        for name, ranges in self._ranges.items():
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


class _Ranges:
    """Running extremes and means of one activation: over channels, heads and images, never the values themselves.

    All of it is updated in place: small tensors kept among a batch's large ones would fragment the heap (see ``Rows``).
    """

    def __init__(self, site: Site, images: int) -> None:
        self.site, self._images = site, images
        self.low = self.high = self.total = torch.zeros(0)
        self.count = 0
        self.heads: tuple[Tensor, Tensor] | None = None
        self.image_low, self.image_high = Rows(), Rows()
        self.smoothings: list[Smoothing] = []

    def update(self, x: Tensor, batch: int) -> None:
        """Take in the activation of ``batch`` images."""
        channels = x.movedim(self.site.channel_axis, -1).reshape(batch, -1, x.shape[self.site.channel_axis])
        low, high = channels.aminmax(dim=1)
        self.image_low.add(self.image_low.length, low.amin(1), self._images)
        self.image_high.add(self.image_high.length, high.amax(1), self._images)
        total = channels.sum((0, 1), dtype=torch.float64)
        if self.count == 0:
            self.low, self.high, self.total = low.amin(0), high.amax(0), total
        else:
            torch.minimum(self.low, low.amin(0), out=self.low)
            torch.maximum(self.high, high.amax(0), out=self.high)
            self.total += total
        self.count += channels.shape[0] * channels.shape[1]
        if self.site.head_axis is not None:
            least, most = x.movedim(self.site.head_axis, 0).flatten(1).aminmax(dim=1)
            if self.heads is None:
                self.heads = (least, most)
            torch.minimum(self.heads[0], least, out=self.heads[0])
            torch.maximum(self.heads[1], most, out=self.heads[1])

    def smooth(self, smoothing: Smoothing) -> None:
        self.smoothings.append(smoothing)

    def state(self) -> dict[str, Tensor]:
        """Everything, with ``heads`` and ``count`` as tensors."""
        state = {"low": self.low, "high": self.high, "total": self.total, "count": torch.tensor(self.count)}
        if self.heads is not None:
            state["head_low"], state["head_high"] = self.heads
        return state | {"image_low": self.image_low.values(), "image_high": self.image_high.values()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Hold the tensors of ``state`` themselves."""
        self.low, self.high, self.total, self.count = state["low"], state["high"], state["total"], int(state["count"])
        if "head_low" in state:
            self.heads = (state["head_low"], state["head_high"])
        self.image_low.hold(state["image_low"])
        self.image_high.hold(state["image_high"])

    def shapes(self, count: int) -> dict[str, Shape]:
        """The shapes in a state with ``count`` extremes of images, several of each where a forward calls again."""
        site, calls = self.site, max(1, count // self._images)
        shapes: dict[str, Shape] = dict.fromkeys(("low", "high", "total"), (site.shape[site.channel_axis],))
        if site.head_axis is not None:
            shapes |= dict.fromkeys(("head_low", "head_high"), site.shape[site.head_axis :][:1])
        return shapes | {"count": ()} | dict.fromkeys(("image_low", "image_high"), (calls * self._images,))

    def stats(self, operation: Operation, product: Product | None) -> SiteStats:
        stats = SiteStats(
            self.site,
            self.low.min(),
            self.high.max(),
            self.low,
            self.high,
            (self.total / self.count).to(torch.float32),
            self.image_low.values(),
            self.image_high.values(),
            self.low,
        )
        for smoothing in self.smoothings:
            stats = stats.smoothed(smoothing)
        stats.sample, stats.importance = operation.sample(self.site)
        stats.product = product
        stats.to_matrix = operation.rhs_matrix if self.site.role == "rhs" else operation.lhs_matrix
        if self.heads is not None:
            stats.head_min, stats.head_max = self.heads
        return stats


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _length(tensors: Mapping[str, Tensor], name: str) -> int:
    return len(tensors[name]) if name in tensors and tensors[name].dim() else 0


def watched_sites(sites: Iterable[Site], softmax: bool, layernorm: bool) -> list[Site]:
    """The sites of a recipe's scope: all but the inputs of Softmax and LayerNorm, which it may ask for."""
    wanted = {SiteKind.SOFTMAX_INPUT: softmax, SiteKind.LAYERNORM_INPUT: layernorm}
    return [site for site in sites if wanted.get(site.kind, True)]
