"""Training problems: a copy of the model, its learned parameters, and the learners of its quantizers."""

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

TRAINED_BY = {"finetune": "core.finetune", "qat": "core.qat"}
"""Stage → the author of its change in the plan."""


@dataclass
class TrainingProblem:
    """The model and the learned parameters of one training.

    Attributes:
        name: the stage, ``finetune`` or ``qat``.
        model: the trained model, on its device: a copy of the float model, or this copy with quantized operations.
        weights: name → learned parameter of the float model.
        bounds: the names in ``weights`` that are bounds of activations.
        learners: site name → learner.
        scales: ``<site>/<name>/<number>`` → learned parameter of a learner.
        frozen_norms: BatchNorms do not update their statistics.
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
        """All learned parameters by name."""
        return {**self.weights, **self.scales}

    def buffers(self) -> dict[str, Tensor]:
        """The buffers that a forward in training changes: the statistics of BatchNorms, unless they are frozen."""
        return {} if self.frozen_norms else dict(self.model.named_buffers())

    def train(self) -> None:
        """Set training mode, except for BatchNorms with frozen statistics."""
        if self.model.training:
            return
        self.model.train()
        for module in batchnorms(self.model) if self.frozen_norms else ():
            module.eval()

    def parameters_without_gradient(self, image: Tensor) -> list[str]:
        """Names of the parameters without a gradient in a backward from the outputs for ``image``.

        Training with several processes must exclude these parameters.
        """
        self.model.eval()
        with torch.enable_grad():
            self.model(image).float().square().sum().backward()
        unreached = [name for name, parameter in self.parameters().items() if parameter.grad is None]
        self.model.zero_grad()
        return unreached


def batchnorms(model: nn.Module) -> list[nn.Module]:
    """The BatchNorms of ``model``, which update their statistics in training mode."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def float_problem(model: nn.Module) -> TrainingProblem:
    """Fine-tuning of every parameter. BatchNorms update their statistics, because a rewrite may have inserted them."""
    trained = copy.deepcopy(model)
    return TrainingProblem("finetune", trained, {n: p for n, p in trained.named_parameters() if p.is_floating_point()})


def quantized_problem(model: nn.Module, plan: Plan, backend: Backend, learn: Learn) -> TrainingProblem:
    """Training of the weights through their quantizers, and of the quantization parameters in ``learn``.

    Most BatchNorms are folded before this stage. The statistics of the others are frozen.

    Args:
        model: the float model, smoothed and folded.
        plan: the quantizers, from which the learners start.
        backend: lowers the model; the lowered model shares the parameters of the float copy.
        learn: the quantization parameters that are learned.
    """
    trained = copy.deepcopy(model)
    weights = {name: p for name, p in trained.named_parameters() if p.is_floating_point()}
    bounds = bounds_of(trained, plan.changes)
    if not learn.bounds:
        weights = {name: p for name, p in weights.items() if name not in bounds}
    learners = {
        d.site.name: LearnedStepSize(d.quantizer, _learns_zero_point(d, learn))
        for d in plan
        if _implements_scaled(d.quantizer)
    }
    scales: dict[str, nn.Parameter] = {}
    for name, learner in learners.items():
        learns_scale = learn.weight_scales if plan.decisions[name].site.kind.is_weight else learn.activation_scales
        for group, parameters in learner.learned().items():
            if learns_scale or group == "zero_points":
                scales |= {f"{name}/{group}/{i}": parameter for i, parameter in enumerate(parameters)}
    lowered = backend.apply(trained, _with_learners(plan, learners))
    return TrainingProblem("qat", lowered, weights, bounds & weights.keys(), learners, scales, frozen_norms=True)


def bounds_of(model: nn.Module, changes: Iterable[Change]) -> set[str]:
    """Names of the parameters ``alpha`` of modules that a technique inserted into ``model``."""
    modules = dict(model.named_modules())
    names = {change.where for change in changes if change.where in modules}
    return {f"{name}.alpha" for name in names if isinstance(modules[name]._parameters.get("alpha"), nn.Parameter)}


@torch.no_grad()
def apply_trained(problem: TrainingProblem, model: nn.Module, plan: Plan | None, note: str) -> None:
    """Copy the learned parameters into the float ``model``, and the learned quantizers into ``plan``."""
    parameters = dict(model.named_parameters())
    for name, learned in problem.weights.items():
        parameters[name].copy_(learned)
    if plan is None:
        buffers = dict(model.named_buffers())
        for name, buffer in problem.buffers().items():
            buffers[name].copy_(buffer)
        return
    learned_sites = {name.partition("/")[0] for name in problem.scales}
    for name, learner in problem.learners.items():
        decision = plan.decisions[name]
        if name in learned_sites:
            quantizer, _ = learner.harden()
            reason = f"{decision.reason}; {note}: {_describe_change(decision.quantizer, quantizer, learner)}"
            plan.decisions[name] = replace(decision, quantizer=quantizer, reason=reason)


def _describe_change(before: Quantizer, after: Quantizer, learner: LearnedStepSize) -> str:
    factor = learner.factor()
    low, high = float(factor.min()), float(factor.max())
    text = f"step ×{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"steps ×{low:.3g} … ×{high:.3g}"
    if learner.shift is not None and isinstance(before, UniformQuantizer) and isinstance(after, UniformQuantizer):
        text += f", zero point by at most {float((after.zero_point - before.zero_point).abs().max()):.3g}"
    return text


def _learns_zero_point(decision: Decision, learn: Learn) -> bool:
    return learn.zero_points and not decision.site.kind.is_weight


def _implements_scaled(quantizer: Quantizer) -> bool:
    return type(quantizer).scaled is not Quantizer.scaled


def _with_learners(plan: Plan, learners: Mapping[str, Learner]) -> Plan:
    return Plan({n: replace(d, quantizer=learners.get(n, d.quantizer)) for n, d in plan.decisions.items()})
