"""Folding of BatchNorms into the convolutions or linears before or behind them; a traced forward finds the pairs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from qplug.core.text import listed
from qplug.core.types import Change
from qplug.models.batchnorm_reads import Reads, same_channels
from qplug.models.merging import merge_branches
from qplug.models.surgery import replace

BY = "core.fold_batchnorm"
"""Name of this step in the plan."""
REASON = "BatchNorm folded into the convolution or linear before it"
REASON_BEHIND = "BatchNorm folded into the convolutions or linears that read it"
MERGED = "branches merged by the block's own function in timm"
AFTER = {
    "torch.nn.modules.batchnorm:BatchNorm1d": (),
    "torch.nn.modules.batchnorm:BatchNorm2d": (),
    "timm.layers.norm_act:BatchNormAct2d": ("drop", "act"),
    "timm.layers.norm_act:FrozenBatchNormAct2d": ("drop", "act"),
    "torchvision.ops.misc:FrozenBatchNorm2d": (),
}
"""Types of BatchNorm that can be folded → the children that each calls, in this order, on the normalized tensor."""


@dataclass
class Folding:
    """The result of folding.

    Attributes:
        changes: one per folded BatchNorm.
        left: paths of the BatchNorms that stay in float, each with the reason.
    """

    changes: list[Change] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def note(self) -> list[str]:
        """A warning that lists the BatchNorms in float by their reasons; none if all were folded."""
        if not self.left:
            return []
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.left.items():
            by_reason.setdefault(reason, []).append(name)
        groups = [
            f"{names[0]} {reason}" if len(names) == 1 else f"{len(names)}, each of which {reason}: {listed(names)}"
            for reason, names in by_reason.items()
        ]
        return [f"BatchNorms that could not be folded stay in float: {'; '.join(groups)}"]


@torch.no_grad()
def fold_batchnorms(model: nn.Module, image: Tensor) -> Folding:
    """Fold, in place, every BatchNorm of ``model`` into the operation before it, or into those behind it.

    - Before: the BatchNorm is the only reader of a convolution or linear. W' = W·γ/√(σ² + ε) and
      b' = (b − μ)·γ/√(σ² + ε) + β, computed in float64 by torch's own fusion and written back in the parameters' dtype
      (Jacob et al. 2018, section 3.2, Eq. 14). The BatchNorm is replaced by the dropout and the activation function
      that it called, under their names, or by an identity.
    - Behind: only convolutions without zero padding and linears read the BatchNorm, which calls nothing else. With
      s = γ/√(σ² + ε) and t = β − μ·s, W' = W·s and b' = b + W·t over the inputs, likewise. It becomes an identity.

    In between, values may move, as long as channels stay. A missing bias is created.
    Where neither is possible, a block of timm that can merge its branches does it (``qplug.models.merging``).

    Activation functions are set to ``inplace=False``: their input is now the output of an operation, which gradients
    and statistics read.

    Args:
        model: float, in eval mode, on the device of ``image``. Only modules whose exact type is ``nn.Conv2d`` or
            ``nn.Linear`` are folded: a subclass may use its weight differently.
        image: (1, C, H, W) float32, for the traced forward.
    """
    folding = Folding()
    if plan := _plan(model, image):
        merged = merge_branches(model, [name for name, place in plan.items() if place.problem], image)
        folding.changes += [Change(name, BY, True, MERGED) for name in merged]
        for name, place in (_plan(model, image) if merged else plan).items():
            norm = model.get_submodule(name)
            if place.problem:
                folding.left[name] = place.problem
                continue
            for operation in place.operations:
                (_fuse_behind if place.behind else _fuse)(model.get_submodule(operation), norm)
            replace(model, norm, _rest(norm))
            where = ", ".join(place.operations)
            folding.changes.append(Change(f"{name} → {where}", BY, True, REASON_BEHIND if place.behind else REASON))
    for module in model.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]  # a Module's attribute is a Tensor or a Module to mypy
    return folding


@dataclass
class _Place:
    """Where a BatchNorm goes: into ``operations``, before or behind it; or nowhere, for the reason ``problem``."""

    operations: list[str] = field(default_factory=list)
    behind: bool = False
    problem: str = ""


def _plan(model: nn.Module, image: Tensor) -> dict[str, _Place]:
    """The place of every BatchNorm that a forward calls, in model order."""
    norms = {name: module for name, module in model.named_modules() if _is_batchnorm(module)}
    if not norms:
        return {}
    reads = Reads(model, norms, image)
    called = [name for name in norms if reads.calls[name]]
    before = {name: _unknown(norms[name]) or reads.problem_before(name) for name in called}
    behind = {
        name: _unknown(norms[name]) or _calls_more(norms[name]) or reads.problem_behind(name, model)
        for name in called
        if before[name] or name not in reads.direct
    }
    pairs = {(reads.operation[name] or "", name) for name in behind if not before[name]}
    pairs |= {(name, follower) for name, problem in behind.items() if not problem for follower in reads.followers[name]}
    same = same_channels(model, pairs, image) if pairs else set()
    places = {}
    for name in called:
        operation, followers = reads.operation[name], reads.followers[name]
        moved = name in behind and not before[name] and (operation, name) not in same
        problem = f"normalizes another axis than the outputs of {operation}" if moved else before[name]
        if not problem and operation is not None:
            places[name] = _Place([operation])
        elif not behind[name] and all((name, follower) in same for follower in followers):
            places[name] = _Place(followers, behind=True)
        elif operation is None and not _unknown(norms[name]):
            why = behind[name] or f"{followers[0]} reads another axis of its own"
            places[name] = _Place(problem=f"{problem}, and {why}")
        else:
            places[name] = _Place(problem=problem)
    return places


def _calls_more(norm: nn.Module) -> str:
    rest = _rest(norm)
    return "" if isinstance(rest, nn.Identity) else f"its {type(rest[0]).__name__} reads its own"  # type: ignore[index]  # a Sequential


def _path(module: nn.Module) -> str:
    return f"{type(module).__module__}:{type(module).__name__}"


def _is_batchnorm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) or _path(module) in AFTER


def _unknown(norm: Any) -> str:
    """The property of the BatchNorm itself that prevents its folding; empty if there is none."""
    if _path(norm) not in AFTER:
        return f"is a {type(norm).__name__}, not a supported type of BatchNorm"
    if norm.training:
        return "is in training mode"
    if norm.running_mean is None or norm.running_var is None:
        return "has no running statistics and normalizes by those of the batch"
    return ""


def _in_double(operation: Any, norm: Any) -> tuple[Tensor | None, ...]:
    """Weight and bias of ``operation``; mean, variance, gain and offset of ``norm``; ``None`` for what is missing."""
    tensors = (operation.weight, operation.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return tuple(None if tensor is None else tensor.double() for tensor in tensors)


def _fuse(operation: Any, norm: Any) -> None:
    weight, bias, mean, variance, gain, offset = _in_double(operation, norm)
    assert weight is not None
    assert mean is not None
    assert variance is not None
    fused = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, gain, offset)
    like = operation.weight
    operation.weight, operation.bias = (nn.Parameter(t.to(like.dtype), requires_grad=like.requires_grad) for t in fused)


def _fuse_behind(operation: Any, norm: Any) -> None:
    """Fold ``norm`` into a convolution or linear that reads it; its groups read groups of the channels."""
    weight, bias, mean, variance, gain, offset = _in_double(operation, norm)
    assert weight is not None
    assert mean is not None
    assert variance is not None
    scale = (variance + norm.eps).rsqrt() * (1.0 if gain is None else gain)
    shift = -mean * scale + (0.0 if offset is None else offset)
    groups = getattr(operation, "groups", 1)
    by_input = (groups, 1, len(mean) // groups, *[1] * (weight.dim() - 2))
    grouped = weight.view(groups, -1, *weight.shape[1:])
    added = (grouped * shift.view(by_input)).flatten(2).sum(2).flatten()
    fused = (grouped * scale.view(by_input)).view(weight.shape), added if bias is None else bias + added
    like = operation.weight
    operation.weight, operation.bias = (nn.Parameter(t.to(like.dtype), requires_grad=like.requires_grad) for t in fused)


def _rest(norm: nn.Module) -> nn.Module:
    """The dropout and the activation function that the BatchNorm called; an identity if it called none."""
    calls = [(name, getattr(norm, name)) for name in AFTER.get(_path(norm), ())]
    rest = OrderedDict((name, module) for name, module in calls if not isinstance(module, nn.Identity))
    return nn.Sequential(rest).eval() if rest else nn.Identity().eval()
