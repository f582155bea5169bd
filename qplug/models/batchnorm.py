"""Folding of BatchNorms into the convolution or linear before them; a traced forward finds the pairs."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from qplug.core.text import listed
from qplug.core.types import Change
from qplug.models.interface import has_own_hooks
from qplug.models.surgery import replace
from qplug.models.tracing import Tracer, no_grad_forward

BY = "core.fold_batchnorm"
"""Name of this step in the plan."""
REASON = "BatchNorm folded into the convolution or linear before it"
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
        """A warning that lists the BatchNorms in float; none if all were folded."""
        if not self.left:
            return []
        reasons = listed(f"{name} {reason}" for name, reason in self.left.items())
        return [f"BatchNorms that could not be folded stay in float: {reasons}"]


@torch.no_grad()
def fold_batchnorms(model: nn.Module, image: Tensor) -> Folding:
    """Fold, in place, every BatchNorm of ``model`` that is the only reader of a convolution or linear.

    W' = W·γ/√(σ² + ε) and b' = (b − μ)·γ/√(σ² + ε) + β, computed in float64 by torch's own fusion and written back in
    the parameters' dtype (Jacob et al. 2018, section 3.2, Eq. 14). A missing bias is created. The BatchNorm is replaced
    by the dropout and the activation function that it called, under their names, or by an identity.

    Activation functions are set to ``inplace=False``: their input is now the output of an operation, which gradients
    and statistics read.

    Args:
        model: float, in eval mode, on the device of ``image``. Only modules whose exact type is ``nn.Conv2d`` or
            ``nn.Linear`` are folded: a subclass may use its weight differently.
        image: (1, C, H, W) float32, for the traced forward.
    """
    folding = Folding()
    norms = {name: module for name, module in model.named_modules() if _is_batchnorm(module)}
    if norms:
        reads = _Reads(model, norms, image)
        for name, norm in norms.items():
            if not reads.calls[name]:
                continue
            operation = reads.operation[name]
            problem = _unknown(norm) or reads.problem(name)
            if problem or operation is None:
                folding.left[name] = problem
                continue
            _fuse(model.get_submodule(operation), norm)
            replace(model, norm, _rest(norm))
            folding.changes.append(Change(f"{name} → {operation}", BY, True, REASON))
    for module in model.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    return folding


class _Reads:
    """One traced forward: the input and the number of calls of each BatchNorm, and the readers of each operation.

    Attributes:
        operation: BatchNorm → the convolution or linear whose output is its input; ``None`` for any other input.
        calls: number of calls of each BatchNorm and operation.
    """

    def __init__(self, model: nn.Module, norms: dict[str, nn.Module], image: Tensor) -> None:
        self.operation: dict[str, str | None] = dict.fromkeys(norms)
        self.calls: Counter[str] = Counter()
        self._tokens: set[str] = set()  # linears whose outputs have more axes than (B, C)
        self._readers: dict[str, list[str]] = defaultdict(list)
        self._outputs: dict[str, Tensor] = {}
        self._tracer = Tracer(lambda label, function: self._readers[label].append(function))
        self._hooked = {n for n, m in model.named_modules() if has_own_hooks(m)}
        handles = []
        for name, module in model.named_modules():
            if type(module) in (nn.Conv2d, nn.Linear):
                handles.append(module.register_forward_hook(self._record_output(name)))
            elif name in norms:
                handles.append(module.register_forward_pre_hook(self._record_input(name)))
        try:
            with self._tracer:
                out = no_grad_forward(model, image)
        finally:
            for handle in handles:
                handle.remove()
        for value in _tensors(out):
            self._readers[self._tracer.origin(value) or ""].append("the model's output")

    def problem(self, norm: str) -> str:
        """The reason why ``norm`` cannot be folded; empty if it can."""
        operation = self.operation[norm]
        if operation is None:
            return "does not read the output of an nn.Conv2d or nn.Linear as it is"
        if self.calls[norm] > 1:
            return f"is called {self.calls[norm]} times"
        if self.calls[operation] > 1:
            return f"reads {operation}, which is called {self.calls[operation]} times"
        if len(self._readers[operation]) > 1:
            return f"is not alone in reading {operation}: {', '.join(self._readers[operation])}"
        if operation in self._tokens:
            return f"normalizes another axis than the outputs of {operation}"
        hooked = [name for name in (norm, operation) if name in self._hooked]
        return f"depends on forward hooks of {hooked[0]}" if hooked else ""

    def _record_output(self, name: str) -> Any:
        def hook(module: nn.Module, _: Any, out: Tensor) -> None:
            self.calls[name] += 1
            if isinstance(module, nn.Linear) and out.dim() != 2:
                self._tokens.add(name)
            self._outputs[name] = out
            self._tracer.label(out, name)

        return hook

    def _record_input(self, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            self.calls[name] += 1
            operation = self._tracer.origin(args[0]) if args else None
            if operation is not None and self._outputs[operation] is args[0]:
                self.operation[name] = operation

        return hook


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


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


def _fuse(operation: Any, norm: Any) -> None:
    tensors = (operation.weight, operation.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    weight, bias, mean, variance, gain, offset = (None if t is None else t.double() for t in tensors)
    assert weight is not None
    assert mean is not None
    assert variance is not None
    fused = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, gain, offset)
    like = operation.weight
    operation.weight, operation.bias = (nn.Parameter(t.to(like.dtype), requires_grad=like.requires_grad) for t in fused)


def _rest(norm: nn.Module) -> nn.Module:
    """The dropout and the activation function that the BatchNorm called; an identity if it called none."""
    calls = [(name, getattr(norm, name)) for name in AFTER[_path(norm)]]
    rest = OrderedDict((name, module) for name, module in calls if not isinstance(module, nn.Identity))
    return nn.Sequential(rest).eval() if rest else nn.Identity().eval()
