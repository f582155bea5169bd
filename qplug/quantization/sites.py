"""Sites: all tensors of a model that can be quantized, collected in one traced forward."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from qplug.core.types import NormGroup, QuantSpec, Site, SiteKind
from qplug.models.attention import MatMul
from qplug.models.batch_axes import batch_axes
from qplug.models.tracing import Tracer, is_norm, kind_after, no_grad_forward
from qplug.quantization.counting import Count, count


@dataclass
class SiteMap:
    """The sites of a model, the norms that only linears read, and the multiply-accumulates (MACs).

    Attributes:
        sites: the sites in the order of execution.
        groups: norm → the linears that read its output, for norms whose output only linears read.
        total_macs: MACs of one image, attention included, counted by torch's FLOP counter.
        uncovered_macs: module path → MACs of one image that belong to no site.
        unknown: module path → operators, or its weights, whose MACs no formula counts.
        calls: module path → its calls in one forward.
        bypassed: site → why its quantizer would be passed by.
        left: module path → the reason why it has no site.

    What is the same for every image, such as a layer that reads a table of coordinates, counts as in a forward of one
    image.
    """

    sites: list[Site] = field(default_factory=list)
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    total_macs: int = 0
    uncovered_macs: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    bypassed: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def float_macs(self, quantized: Container[str]) -> dict[str, int]:
        """Module → MACs that stay in float if the sites named in ``quantized`` are quantized.

        An operation counts as quantized if both of its operands are quantized.
        """
        macs = dict(self.uncovered_macs)
        for site in self.sites:
            if site.macs and site.name not in quantized:
                macs[site.module] = site.macs
        return macs

    def without(self, modules: Container[str]) -> SiteMap:
        """The map without the sites of these modules, whose MACs then belong to no site."""
        macs = {site.module: site.macs for site in self.sites if site.macs and site.module in modules}
        sites = [site for site in self.sites if site.module not in modules]
        return replace(self, sites=sites, uncovered_macs={**self.uncovered_macs, **macs})

    def norm_groups(self, model: nn.Module, specs: Mapping[str, QuantSpec] | None = None) -> list[NormGroup]:
        """The groups with the present weights of ``model``; ``specs`` omits the sites that stay in float."""
        specs = specs or {}
        return [
            NormGroup(
                norm,
                linears,
                tuple(_weight(model, linear) for linear in linears),
                tuple(specs.get(f"{linear}.weight") for linear in linears),
                specs.get(f"{linears[0]}.input"),
            )
            for norm, linears in self.groups.items()
        ]


def _weight(model: nn.Module, path: str) -> Tensor:
    weight = model.get_submodule(path).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def find_sites(model: nn.Module, image: Tensor) -> SiteMap:
    """Trace one forward of ``model`` (eval mode, with explicit attention) on ``image``, a batch of one."""
    finder = _SiteFinder(model)
    finder.trace(image)
    operations = {name: model.get_submodule(name) for name in dict.fromkeys(site.module for site in finder.sites)}
    left = batch_axes(model, operations, image).problems()
    groups = {norm: readers for norm, readers in finder.groups().items() if not left.keys() & {norm, *readers}}
    result = SiteMap([site for site in finder.sites if site.module not in left], groups, left=left)
    covered: dict[str, int] = {}
    for site in result.sites:
        covered[site.module] = max(covered.get(site.module, 0), site.macs)
    counted = count(model, image)
    result.total_macs = sum(counted.macs.values())
    result.uncovered_macs = {
        name: macs - covered.get(name, 0) for name, macs in counted.macs.items() if macs > covered.get(name, 0)
    }
    result.unknown = counted.unknown
    result.calls = {site.module: counted.calls.get(site.module, 0) for site in result.sites}
    result.bypassed = dict(_bypassed(result.sites, finder.calls, counted))
    return result


def _bypassed(sites: Iterable[Site], traced: Mapping[str, int], counted: Count) -> Iterator[tuple[str, str]]:
    """Site → why its quantizer would not be called, or not always."""
    for site in sites:
        calls = counted.calls.get(site.module, 0)
        if calls < traced[site.module]:
            yield (
                site.name,
                f"torch calls {site.module} {calls} × instead of {traced[site.module]} ×, and a fused kernel",
            )
        elif site.kind.is_weight and site.name in counted.reads:
            yield site.name, f"{counted.reads[site.name]} reads it past {site.module}"


class _SiteFinder:
    """Collects sites in one forward: hooks on operations create sites, and the tracer labels their inputs."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.sites: list[Site] = []
        self.calls: dict[str, int] = defaultdict(int)
        self._readers: dict[str, list[str]] = defaultdict(list)
        self._blocked: set[str] = set()
        self._macs: dict[str, int] = defaultdict(int)
        self._reads: dict[str, str] = {}
        self._norm_means: dict[str, Tensor] = {}
        self._tracer = Tracer(lambda origin, _: self._blocked.add(origin.partition(":")[2]))

    def trace(self, image: Tensor) -> None:
        """Run the traced forward."""
        handles = []
        for name, module in self.model.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, MatMul)) or kind_after(module) is not None:
                handles.append(module.register_forward_pre_hook(self._enter))
                handles.append(module.register_forward_hook(self._leave(name)))
        try:
            with self._tracer:
                out = no_grad_forward(self.model, image)
        finally:
            for handle in handles:
                handle.remove()
        self._block(out)
        self.sites = [replace(site, macs=self._macs[site.module]) for site in self.sites]

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Norm → the linears that read it, for norms that only linears read."""
        return {norm: tuple(readers) for norm, readers in self._readers.items() if norm not in self._blocked}

    def _enter(self, _: nn.Module, __: Any) -> None:
        self._tracer.quiet += 1

    def _leave(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            source = self._source(name, module, args)
            if name not in self._macs:  # a second call of a module creates no sites
                self._record(name, module, args, source)
            self.calls[name] += 1
            self._macs[name] += _macs(module, args, out)
            kind = kind_after(module)
            if kind is not None:
                self._tracer.label(out, f"{kind.value}:{name}")
            if is_norm(module):
                self._norm_means[name] = out.flatten(0, -2).mean(0)
            self._tracer.quiet -= 1  # last, so that the tracer ignores the operations of this hook

        return hook

    def _block(self, *tensors: Any) -> None:
        """Exclude the norms that produced these tensors from the groups, because another operation reads them."""
        self._blocked.update((self._tracer.origin(tensor) or "").partition(":")[2] for tensor in tensors)

    def _source(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> str:
        """The norm whose output a linear reads; empty for another input.

        The result is empty if the norm's channels are on another axis. The norm is excluded from the groups if another
        call of the linear reads another tensor.
        """
        label, _, source = (self._tracer.origin(args[0]) or "").partition(":")
        smoothable = (
            isinstance(module, nn.Linear)
            and label == SiteKind.POST_LAYERNORM.value
            and _same_channels(args[0], self._norm_means[source])
        )
        if not smoothable:
            self._block(*args)
            source = ""
        before = self._reads.setdefault(name, source)
        if before != source:
            self._blocked.update((before, source))
        return source

    def _record(self, name: str, module: nn.Module, args: tuple[Any, ...], source: str) -> None:
        label = (self._tracer.origin(args[0]) or "").partition(":")[0]
        traced = SiteKind(label) if label else None
        if isinstance(module, nn.Linear):
            kind = traced or SiteKind.LINEAR_INPUT
            self._add(name, SiteKind.LINEAR_WEIGHT, "weight", module.weight, channel_axis=0)
            self._add(name, kind, "input", args[0], source=source or None)
            if source:
                self._readers[source].append(name)
        elif isinstance(module, nn.Conv2d):
            kind = traced if traced and traced is not SiteKind.POST_LAYERNORM else SiteKind.CONV_INPUT
            self._add(name, SiteKind.CONV_WEIGHT, "weight", module.weight, channel_axis=0)
            self._add(name, kind, "input", args[0], channel_axis=-3)
        elif isinstance(module, MatMul):
            right = SiteKind.KEY if module.transpose_rhs else SiteKind.VALUE
            self._add(name, traced or SiteKind.QUERY, "lhs", args[0], head_axis=_head_axis(args[0]))
            self._add(name, right, "rhs", args[1], head_axis=_head_axis(args[1]))
        elif isinstance(module, nn.Softmax):
            self._add(name, SiteKind.SOFTMAX_INPUT, "input", args[0], head_axis=_head_axis(args[0]))
        elif is_norm(module):
            self._add(name, SiteKind.LAYERNORM_INPUT, "input", args[0])

    def _add(self, module: str, kind: SiteKind, role: Any, tensor: Tensor, **more: Any) -> None:
        shape = tuple(tensor.shape)
        if not kind.is_weight and shape[0] == 1:
            shape = shape[1:]
        self.sites.append(Site(f"{module}.{role}", kind, module, role, shape, **more))


def _head_axis(x: Tensor) -> int | None:
    """The axis of heads in attention's (B, H, N, ·); nobody knows which one it is among more axes, or fewer."""
    return -3 if x.dim() == 4 else None


def _macs(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> int:
    """MACs of one call; 0 for norms, activations and Softmax."""
    if isinstance(module, nn.Linear):
        return out.numel() * module.in_features
    if isinstance(module, nn.Conv2d):
        return out.numel() * prod(module.weight.shape[1:])
    return out.numel() * int(args[0].shape[-1]) if isinstance(module, MatMul) else 0


def _same_channels(x: Tensor, means: Tensor) -> bool:
    """Whether the last axis of ``x``, a view or copy of a norm's output, still has the norm's channels.

    MLP-Mixer transposes before its token MLP. Shapes do not reveal it if tokens and channels are equally many.
    """
    means_of_x = x.flatten(0, -2).mean(0)
    return means_of_x.shape == means.shape and torch.allclose(means_of_x, means, rtol=1e-3, atol=1e-5)
