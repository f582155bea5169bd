"""What is trained: a copy of the model, which of its parameters are learned, and the learners of its quantizers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from qplug.core.types import Change
from qplug.quantization.backends.base import Backend
from qplug.quantization.plan import Decision, Plan
from qplug.quantization.quantizers import Quantizer, UniformQuantizer
from qplug.training.learners import LearnedStepSize, Learner
from qplug.training.supervised.config import Learn

BY = {"finetune": "core.finetune", "qat": "core.qat"}
"""Who changed the model, in the plan, by stage."""


@dataclass
class Task:
    """One training.

    Attributes:
        name: its stage, ``finetune`` or ``qat``.
        model: what is trained, on its device: the float model's copy, or that with its operations quantized.
        weights: what is learned of the float model, by name.
        bounds: names among them that are bounds of activations.
        learners: site name → its quantizer while it is learned.
        scales: what is learned of the learners, by site and number.
        frozen_norms: whether BatchNorms keep their statistics.
    """

    name: str
    model: nn.Module
    weights: dict[str, nn.Parameter]
    bounds: set[str] = field(default_factory=set)
    learners: dict[str, LearnedStepSize] = field(default_factory=dict)
    scales: dict[str, nn.Parameter] = field(default_factory=dict)
    frozen_norms: bool = False

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)
        for parameter in self.parameters().values():
            parameter.requires_grad_(True)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything that is learned."""
        return {**self.weights, **self.scales}

    def buffers(self) -> dict[str, Tensor]:
        """What a forward in training changes: the statistics of BatchNorms, where they are not frozen."""
        return {} if self.frozen_norms else dict(self.model.named_buffers())

    def train(self) -> None:
        """Training mode, but for BatchNorms whose statistics are frozen."""
        if self.model.training:
            return
        self.model.train()
        for module in batchnorms(self.model) if self.frozen_norms else ():
            module.eval()

    def without_gradient(self, image: Tensor) -> list[str]:
        """What a backward through the logits of ``image`` does not reach: processes must agree to leave it out."""
        self.model.eval()
        with torch.enable_grad():
            self.model(image).float().square().sum().backward()
        unreached = [name for name, parameter in self.parameters().items() if parameter.grad is None]
        self.model.zero_grad()
        return unreached


def batchnorms(model: nn.Module) -> list[nn.Module]:
    """Those that learn statistics while they train."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def float_task(model: nn.Module) -> Task:
    """Fine-tuning of every parameter; BatchNorms learn their statistics, which a rewrite may have just made."""
    twin = copy.deepcopy(model)
    return Task("finetune", twin, {n: p for n, p in twin.named_parameters() if p.is_floating_point()})


def quantized_task(model: nn.Module, plan: Plan, backend: Backend, learn: Learn) -> Task:
    """Training of the weights through their quantizers, and of scales as ``learn`` says.

    BatchNorms are folded by now; what of them could not be folded keeps its statistics.

    Args:
        model: the float model, smoothed and folded.
        plan: its quantizers, from which the learners start.
        backend: lowers it, and keeps the float model's parameters as its own.
        learn: what is learned beside the weights.
    """
    twin = copy.deepcopy(model)
    weights = {name: p for name, p in twin.named_parameters() if p.is_floating_point()}
    bounds = bounds_of(twin, plan.changes)
    if not learn.bounds:
        weights = {name: p for name, p in weights.items() if name not in bounds}
    learners = {
        d.site.name: LearnedStepSize(d.quantizer, _moves(d, learn)) for d in plan if _can_be_scaled(d.quantizer)
    }
    scales: dict[str, nn.Parameter] = {}
    for name, learner in learners.items():
        wanted = learn.weight_scales if plan.decisions[name].site.kind.is_weight else learn.activation_scales
        for what, learned in learner.learned().items():
            if wanted or what == "zero_points":
                scales |= {f"{name}/{what}/{i}": parameter for i, parameter in enumerate(learned)}
    lowered = backend.apply(twin, _with(plan, learners))
    return Task("qat", lowered, weights, bounds & weights.keys(), learners, scales, frozen_norms=True)


def bounds_of(model: nn.Module, changes: Iterable[Change]) -> set[str]:
    """Parameters named ``alpha`` of modules that a technique put into ``model``, by name."""
    modules = dict(model.named_modules())
    names = {change.where for change in changes if change.where in modules}
    return {f"{name}.alpha" for name in names if isinstance(modules[name]._parameters.get("alpha"), nn.Parameter)}


@torch.no_grad()
def take(task: Task, model: nn.Module, plan: Plan | None, note: str) -> None:
    """Put what was learned into the float ``model`` and, where there is one, into ``plan``."""
    parameters = dict(model.named_parameters())
    for name, learned in task.weights.items():
        parameters[name].copy_(learned)
    if plan is None:
        buffers = dict(model.named_buffers())
        for name, buffer in task.buffers().items():
            buffers[name].copy_(buffer)
        return
    moved = {name.partition("/")[0] for name in task.scales}
    for name, learner in task.learners.items():
        decision = plan.decisions[name]
        if name in moved:
            made, _ = learner.harden()
            reason = f"{decision.reason}; {note}: {_movement(decision.quantizer, made, learner)}"
            plan.decisions[name] = replace(decision, quantizer=made, reason=reason)


def _movement(before: Quantizer, after: Quantizer, learner: LearnedStepSize) -> str:
    factor = learner.factor()
    low, high = float(factor.min()), float(factor.max())
    text = f"step ×{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"steps ×{low:.3g} … ×{high:.3g}"
    if learner.shift is not None and isinstance(before, UniformQuantizer) and isinstance(after, UniformQuantizer):
        text += f", zero point by at most {float((after.zero_point - before.zero_point).abs().max()):.3g}"
    return text


def _moves(decision: Decision, learn: Learn) -> bool:
    return learn.zero_points and not decision.site.kind.is_weight


def _can_be_scaled(quantizer: Quantizer) -> bool:
    return type(quantizer).scaled is not Quantizer.scaled


def _with(plan: Plan, learners: Mapping[str, Learner]) -> Plan:
    return Plan({n: replace(d, quantizer=learners.get(n, d.quantizer)) for n, d in plan.decisions.items()})
