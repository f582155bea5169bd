"""The contract of backends: what a plan says is what is computed, in evaluation, in inference and in training."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qplug.core.errors import InputError
from qplug.core.types import BackendOffer, Granularity, QuantSpec, SiteKind
from qplug.quantization.backends import Backend
from qplug.quantization.calibration.calibrator import Calibration
from qplug.quantization.plan import Plan
from qplug.quantization.quantizers import UniformQuantizer
from qplug.quantization.sites import SiteMap
from qplug.testing.backend_plans import NUMBERS, SETTINGS, C, Number, T, plan_of, reference, relative, single
from qplug.testing.toys import calibrated_toy, toy_images
from qplug.training.learners import LearnedStepSize

TOLERANCE = 1e-6
"""How far outputs may lie from those of plain torch, as a share of their norm."""

CONVOLUTIONS: tuple[dict[str, Any], ...] = (
    {"stride": 2, "padding": (1, 2)},
    {"groups": 4, "bias": False},
    {"dilation": 2, "padding": "same"},
    {"padding": 1, "padding_mode": "circular"},
    {"padding": 1, "padding_mode": "reflect"},
)
OUTSIDE = {SiteKind.SOFTMAX_INPUT: "softmax", SiteKind.LAYERNORM_INPUT: "layernorm"}
"""Kinds that a backend need not execute → their names in ``BackendOffer.scope``."""

Known = tuple[nn.Module, SiteMap, Calibration, Tensor]
"""A float model with its attention explicit, its sites, their statistics, and a batch."""


class BackendContract:
    """Subclass it in a plugin's tests, and set ``offer`` to what ``qplug_backends`` returns::

        class TestMine(BackendContract):
            offer = BackendOffer("my_backend.lower:MyBackend", bits=(4, 8))

    Only what the offer says that the backend can execute is asked of it.
    """

    offer: ClassVar[BackendOffer]
    numbers: ClassVar[Mapping[str, Number]] = NUMBERS

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """One test for each setting, each quantizer and each convolution that the backend can execute."""
        if "setting" in metafunc.fixturenames:
            known = [name for name, specs in SETTINGS.items() if all(map(self.executes, specs))]
            metafunc.parametrize("setting", known)
        if "number" in metafunc.fixturenames:
            known = [name for name, (make, *_) in self.numbers.items() if self.offer.has(make().bits)]
            metafunc.parametrize("number", known)
        if "options" in metafunc.fixturenames:
            metafunc.parametrize("options", CONVOLUTIONS, ids=str)

    def executes(self, spec: QuantSpec) -> bool:
        """Whether the offer says that the backend can execute a site of ``spec``."""
        offer = self.offer
        return (
            offer.has(spec.bits)
            and spec.granularity in offer.granularities
            and (spec.symmetric or offer.asymmetric)
            and (spec.zero_point == "integer" or offer.float_zero_points)
        )

    def backend(self) -> Backend:
        """The backend, as a run makes it."""
        module, _, name = self.offer.path.partition(":")
        made: Backend = getattr(importlib.import_module(module), name)()
        return made

    def toy(self) -> Known:
        """What is lowered; subclasses may take another model."""
        return (*calibrated_toy(), toy_images(3))

    def plan(self, setting: str | None = None, leave: Sequence[str] = ()) -> Plan:
        """Of the toy: at ``setting``, or at the first one that the backend can execute."""
        _, found, calibration, _ = self.toy()
        specs = SETTINGS[setting] if setting else next(s for s in SETTINGS.values() if all(map(self.executes, s)))
        outside = [s.name for s in found.sites if s.kind in OUTSIDE and OUTSIDE[s.kind] not in self.offer.scope]
        return plan_of(found, calibration, *specs, (*leave, *outside))

    def lowered(self, plan: Plan) -> nn.Module:
        """The toy by ``plan``."""
        return self.backend().apply(copy.deepcopy(self.toy()[0]), plan)

    # what is computed

    def test_outputs_are_those_of_plain_torch_and_inference_gives_the_same_bits(self, setting: str) -> None:
        """To ``TOLERANCE``, at every setting."""
        model, *_, images = self.toy()
        plan = self.plan(setting)
        quantized = self.lowered(plan)
        with torch.no_grad():
            normal = quantized(images)
        with self.backend().inference(quantized):
            inferred = quantized(images)
        assert torch.equal(inferred, normal), f"{setting}: inference gives other values than an ordinary forward"
        error = relative(normal, reference(model, plan, images))
        assert error < TOLERANCE, f"{setting}: outputs are {error:.1e} of their norm away from those of plain torch"
        if setting != "16 bits":
            assert relative(normal, model(images)) > 1e-3, f"{setting}: nothing was quantized"

    def test_the_reference_numbers(self, number: str) -> None:
        """A quantizer of each kind, as weight or input of a linear, on values worked out by hand."""
        make, given, expected = self.numbers[number]
        quantizer, x = make(), torch.tensor(given, dtype=torch.float32)
        role, kind = ("weight", SiteKind.LINEAR_WEIGHT) if x.dim() == 2 else ("input", SiteKind.LINEAR_INPUT)
        linear = nn.Linear(x.shape[-1], x.shape[-1], bias=False)
        with torch.no_grad():
            linear.weight.copy_(x if role == "weight" else torch.eye(len(x)))
        quantized = self.backend().apply(nn.Sequential(linear), single(role, kind, tuple(x.shape), quantizer))
        shown = torch.eye(len(x)) if role == "weight" else x.unsqueeze(0)
        with torch.no_grad():
            normal = quantized(shown)
        with self.backend().inference(quantized):
            inferred = quantized(shown)
        values = normal.T if role == "weight" else normal[0]
        torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float32), rtol=1e-6, atol=1e-7)
        assert torch.equal(values, make().infer(x)), f"{number}: other values than the quantizer's infer"
        assert torch.equal(inferred, normal), f"{number}: inference gives other values than an ordinary forward"

    def test_convolutions(self, options: dict[str, Any]) -> None:
        """Strides, groups, dilation and padding are those of the original."""
        torch.manual_seed(0)
        conv, x = nn.Conv2d(4, 8, 3, **options), torch.randn(2, 4, 9, 9)
        model, plan, spec = nn.Sequential(conv), Plan(), self._spec(C if C in self.offer.granularities else T)
        axes = (1, 2, 3) if spec.granularity is C else (0, 1, 2, 3)
        low, high = (extreme(conv.weight, axes, keepdim=True).detach() for extreme in (torch.amin, torch.amax))
        low, high = (low, high) if spec.granularity is C else (low.view(()), high.view(()))
        for role, kind, a, b in (
            ("weight", SiteKind.CONV_WEIGHT, low, high),
            ("input", SiteKind.CONV_INPUT, x.min(), x.max()),
        ):
            quantizer = UniformQuantizer.from_range(a, b, spec)
            plan.decisions |= single(role, kind, (), quantizer).decisions
        expected = reference(model, plan, x)
        quantized = self.backend().apply(copy.deepcopy(model), plan)
        with torch.no_grad():
            error = relative(quantized(x), expected)
            assert error < TOLERANCE, f"{options}: outputs are {error:.1e} of their norm away from those of plain torch"
            with self.backend().switched_off(quantized):
                assert torch.equal(quantized(x), model(x)), f"{options}: other values with quantizers off"

    def test_with_quantizers_off_the_model_computes_exactly_what_it_did(self) -> None:
        """And quantizes again behind it."""
        model, *_, images = self.toy()
        quantized = self.lowered(self.plan())
        with torch.no_grad():
            on = quantized(images)
            with self.backend().switched_off(quantized):
                assert torch.equal(quantized(images), model(images)), "switched_off changes what the model computes"
            assert torch.equal(quantized(images), on), "behind switched_off the model quantizes no more as before"

    def test_what_the_plan_leaves_out_stays_in_float(self) -> None:
        """A whole operation, and one operand of another."""
        model, found, _, images = self.toy()
        linears = [d.site.module for d in self.plan() if type(model.get_submodule(d.site.module)) is nn.Linear]
        whole, part = linears[-1], linears[0]
        matmuls = [site.name for site in found.sites if site.role == "lhs"][:1]
        plan = self.plan(leave=(f"{whole}.input", f"{whole}.weight", f"{part}.weight", *matmuls))
        quantized = self.lowered(plan)
        assert type(quantized.get_submodule(whole)) is nn.Linear, f"'{whole}' has no quantizer, and was replaced"
        with self.backend().inference(quantized):
            error = relative(quantized(images), reference(model, plan, images))
        assert error < TOLERANCE, f"outputs are {error:.1e} of their norm away from those of plain torch"

    def test_a_module_under_two_names_is_quantized_under_both(self) -> None:
        """It stays one module."""
        torch.manual_seed(0)
        model, x = _Shared(), torch.randn(3, 6)
        spec = self._spec(T)
        plan = Plan()
        for role, kind, values in (
            ("weight", SiteKind.LINEAR_WEIGHT, model.first.weight.detach()),
            ("input", SiteKind.LINEAR_INPUT, x),
        ):
            quantizer = UniformQuantizer.from_range(values.min(), values.max(), spec)
            plan.decisions |= single(role, kind, tuple(values.shape), quantizer, module="again").decisions
        quantized: Any = self.backend().apply(copy.deepcopy(model), plan)
        assert quantized.again is quantized.first, "a module under two names became two modules"
        with self.backend().inference(quantized):
            assert torch.equal(quantized(x), reference(model, plan, x))

    def test_a_subclass_that_may_do_more_is_refused_and_says_what_to_do(self) -> None:
        """With an ``InputError`` that names the module."""
        quantizer = UniformQuantizer(torch.tensor(0.1), None, self._spec(T).bits, signed=True)
        plan = single("weight", SiteKind.LINEAR_WEIGHT, (2, 3), quantizer)
        refused = None
        try:
            self.backend().apply(nn.Sequential(_Scaled(3, 2)), plan)
        except InputError as error:
            refused = error
        assert refused, "a subclass of nn.Linear that computes something else is replaced without a word"
        assert refused.where == "0", f"the error names '{refused.where}' as the place, not the module '0'"
        assert "skip: true" in refused.fix, "the error does not say how to leave the module in float"

    # inference

    def test_inference_leaves_the_model_as_it_was(self) -> None:
        """After an error within it too."""
        *_, images = self.toy()
        backend, quantized = self.backend(), self.lowered(self.plan()).requires_grad_(True)
        state = {name: value.clone() for name, value in quantized.state_dict().items()}
        modules = [name for name, _ in quantized.named_modules()]
        with torch.no_grad():
            before = quantized(images)
        for _ in range(2):
            with backend.inference(quantized):
                assert not quantized(images).requires_grad, "inference records gradients"
        with suppress(ZeroDivisionError), backend.inference(quantized):
            raise ZeroDivisionError
        assert quantized.state_dict().keys() == state.keys(), "inference leaves other tensors in the state dict"
        same = all(torch.equal(value, state[name]) for name, value in quantized.state_dict().items())
        assert same, "inference changes tensors of the state dict"
        assert [name for name, _ in quantized.named_modules()] == modules, "inference leaves other modules"
        with torch.no_grad():
            assert torch.equal(quantized(images), before), "behind inference the model computes something else"
        assert quantized(images).requires_grad, "behind inference no gradient passes"

    def test_inference_within_inference_leaves_the_outer_one_as_it_is(self) -> None:
        """The inner one ends, and the outer one goes on with the weights that it began with."""
        *_, images = self.toy()
        backend, plan = self.backend(), self.plan()
        quantized = self.lowered(plan)
        last = [d.site.name for d in plan if d.site.kind.is_weight][-1]
        with backend.inference(quantized):
            before = quantized(images)
            with backend.inference(quantized):
                assert torch.equal(quantized(images), before), "an inner inference gives other values"
            quantized.get_parameter(last).data.mul_(2)  # whose values may be kept when the outer one began
            assert torch.equal(quantized(images), before), "an inner inference ends the outer one"
        with torch.no_grad():
            assert relative(quantized(images), before) > 0.1, f"behind inference the new '{last}' is not seen"

    def test_inference_sees_what_was_learned_since(self) -> None:
        """Weights that changed between two inferences."""
        *_, images = self.toy()
        backend, plan = self.backend(), self.plan()
        quantized = self.lowered(plan)
        with backend.inference(quantized):
            stale = quantized(images)
        with torch.no_grad():
            for decision in plan:
                if decision.site.kind.is_weight:
                    quantized.get_parameter(decision.site.name).mul_(0.6)
            normal = quantized(images)
        with backend.inference(quantized):
            assert torch.equal(quantized(images), normal), "inference does not see weights that changed since"
        assert not torch.allclose(normal, stale)

    # training

    def test_weights_are_the_float_models_own_parameters(self) -> None:
        """The very same, under the name of their site: training and reconstruction look there."""
        model = copy.deepcopy(self.toy()[0])
        parameters, values, plan = dict(model.named_parameters()), dict(self.toy()[0].named_parameters()), self.plan()
        quantized = self.backend().apply(model, plan)
        for name in (decision.site.name for decision in plan if decision.site.kind.is_weight):
            assert quantized.get_parameter(name) is parameters[name], f"'{name}' is another parameter than the model's"
            assert torch.equal(parameters[name], values[name]), f"'{name}' has other values than before"

    def test_gradients_reach_every_weight(self) -> None:
        """Through the quantizers of weights and of activations."""
        if "qplug_reconstruct" in self.offer.without:
            return
        *_, images = self.toy()
        plan = self.plan()
        quantized = self.lowered(plan).requires_grad_(True).train()
        quantized(images).square().mean().backward()
        for decision in plan:
            if decision.site.kind.is_weight:
                gradient = quantized.get_parameter(decision.site.name).grad
                assert gradient is not None, f"no gradient reaches '{decision.site.name}'"
                assert bool(gradient.isfinite().all()), f"the gradient of '{decision.site.name}' is not finite"
                assert bool(gradient.any()), f"the gradient of '{decision.site.name}' is 0 everywhere"

    def test_gradients_reach_what_is_learned_of_a_quantizer(self) -> None:
        """The parameters of learners that stand in the plan in the place of quantizers, as training puts them there."""
        if "qplug_reconstruct" in self.offer.without:
            return  # the offer says that the backend has no gradients
        *_, images = self.toy()
        plan = self.plan()
        learners = {d.site.name: LearnedStepSize(d.quantizer) for d in plan if d.site.role == "input" and d.site.macs}
        learned = Plan({n: replace(d, quantizer=learners.get(n, d.quantizer)) for n, d in plan.decisions.items()})
        quantized = self.lowered(learned)
        with torch.no_grad():
            error = relative(quantized(images), reference(self.toy()[0], plan, images))
        assert error < TOLERANCE, f"with learners that have learned nothing, outputs are {error:.1e} of their norm away"
        quantized(images).square().mean().backward()
        for name, learner in learners.items():
            gradients = [parameter.grad for parameter in learner.parameters()]
            assert all(g is not None and bool(g.isfinite().all()) for g in gradients), (
                f"no gradient reaches the learner of '{name}': its very module must be part of the lowered model"
            )

    def _spec(self, granularity: Granularity) -> QuantSpec:
        low, high = self.offer.bits
        return QuantSpec(min(max(low, 4), high), granularity)


class _Shared(nn.Module):
    """One linear under two names, called by the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.again(x)
        return out


class _Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)
