"""The contract of backends finds what is wrong; the core's own backends pass it in ``tests/quantization/backends``."""

import copy
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from other_backend import Other
from torch import nn

from qplug import BackendOffer, Granularity
from qplug.quantization.backends.brevitas import BrevitasBackend
from qplug.testing import BackendContract

pytestmark = [
    pytest.mark.filterwarnings("ignore:Computing zero point of output accumulator:UserWarning:brevitas"),
    pytest.mark.filterwarnings("ignore:Could not compute output scale factor:UserWarning:brevitas"),
]


class InferenceScales(BrevitasBackend):
    @contextmanager
    def inference(self, model):
        handle = model.register_forward_hook(lambda module, args, out: out * 1.001)
        with super().inference(model):
            yield
        handle.remove()


class InferenceStays(BrevitasBackend):
    @contextmanager
    def inference(self, model):
        with torch.no_grad():
            yield
        model.requires_grad_(False)


class NeverOff(BrevitasBackend):
    @contextmanager
    def switched_off(self, model):
        yield


class TakesAll(BrevitasBackend):
    def apply(self, model, plan):
        for path, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and path not in plan.modules():
                model.set_submodule(path, nn.Sequential(module))
        return super().apply(model, plan)


class CopiesWeights(BrevitasBackend):
    def layer(self, original, quantizers):
        return super().layer(copy.deepcopy(original), quantizers)


class CopiesQuantizers(BrevitasBackend):
    def layer(self, original, quantizers):
        return super().layer(original, copy.deepcopy(quantizers))


class Accepts(BrevitasBackend):
    def apply(self, model, plan):
        for path in plan.modules():
            module = model.get_submodule(path)
            if isinstance(module, nn.Linear) and type(module) is not nn.Linear:
                plain = nn.Linear(module.in_features, module.out_features)
                plain.load_state_dict(module.state_dict())
                model.set_submodule(path, plain)
        return super().apply(model, plan)


def contract(backend, **limits):
    offer = BackendOffer(f"{backend.__module__}:{backend.__name__}", **limits)
    return type("Suite", (BackendContract,), {"offer": offer})()


OUTPUTS = "outputs_are_those_of_plain_torch_and_inference_gives_the_same_bits"


@pytest.mark.parametrize(
    ("backend", "test", "message"),
    [
        (Other, OUTPUTS, "away from those of plain torch"),
        (
            InferenceScales,
            "outputs_are_those_of_plain_torch_and_inference_gives_the_same_bits",
            "inference gives other",
        ),
        (InferenceStays, "inference_leaves_the_model_as_it_was", "behind inference no gradient passes"),
        (NeverOff, "with_quantizers_off_the_model_computes_exactly_what_it_did", "switched_off changes what"),
        (TakesAll, "what_the_plan_leaves_out_stays_in_float", "has no quantizer, and was replaced"),
        (CopiesWeights, "weights_are_the_float_models_own_parameters", "is another parameter than the model's"),
        (CopiesQuantizers, "gradients_reach_what_is_learned_of_a_quantizer", "no gradient reaches the learner of"),
        (Accepts, "a_subclass_that_may_do_more_is_refused_and_says_what_to_do", "is replaced without a word"),
    ],
)
def test_the_suite_finds_what_is_wrong(backend, test, message):
    check = getattr(contract(backend), f"test_{test}")
    arguments = {"setting": "4 bits"} if "setting" in check.__code__.co_varnames else {}
    with pytest.raises(AssertionError, match=message):
        check(**arguments)


def test_only_what_the_offer_says_is_asked_for():
    asked = {}
    metafunc = SimpleNamespace(
        fixturenames=("setting", "number", "options"),
        parametrize=lambda name, values, **_: asked.update({name: values}),
    )
    few = (Granularity.PER_TENSOR, Granularity.PER_CHANNEL)
    contract(Other, bits=(4, 8), granularities=few).pytest_generate_tests(metafunc)
    assert asked["setting"] == ["4 bits", "asymmetric", "float zero point", "channels of activations"]
    assert asked["number"] == ["regions"]
    contract(Other, asymmetric=False, float_zero_points=False).pytest_generate_tests(metafunc)
    assert not {"asymmetric", "float zero point"} & set(asked["setting"])
    assert "heads" in asked["setting"]


def test_what_is_outside_of_the_scope_stays_in_float():
    kinds = {decision.site.kind.value for decision in contract(Other, scope=("softmax",)).plan()}
    assert "softmax_input" in kinds
    assert "layernorm_input" not in kinds
