"""Both backends compute the plan's quantizers: the same numbers to the last bit, and the same gradients."""

import functools
import importlib
from importlib.util import find_spec

import pytest
import torch
from backend_toys import SETTINGS, lowered, reference, relative
from numeric_toys import calibrated, swin
from torch import nn

import qplug
from qplug.hooks.registry import backend_of, installed
from qplug.quantization.backends.lowering import QuantMatMul
from qplug.recipe import recipe_type
from qplug.testing import BackendContract, backend_plans, toy_images, toy_registry

modelopt = pytest.mark.skipif(find_spec("modelopt") is None, reason="pip install 'qplug[modelopt]'")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Computing zero point of output accumulator:UserWarning:brevitas"),
    pytest.mark.filterwarnings("ignore:Could not compute output scale factor:UserWarning:brevitas"),
]


@pytest.fixture(scope="module", params=["brevitas", "modelopt"])
def backend(request):
    pytest.importorskip(request.param, reason=f"pip install 'qplug[{request.param}]'")
    return backend_of(request.param, installed())


@functools.cache
def lowerable_swin():
    torch.manual_seed(0)
    return (*calibrated(swin().requires_grad_(False), torch.randn(2, 3, 32, 32)), torch.randn(2, 3, 32, 32))


@pytest.fixture(scope="module", params=["vit", "swin"])
def known(request):
    return (*calibrated(), toy_images(3)) if request.param == "vit" else lowerable_swin()


@pytest.fixture(scope="module")
def vit():
    return (*calibrated(), toy_images(3))


def scales(model, within=""):
    """Parameters that lowering made learnable, by name."""
    return {n: p for n, p in model.named_parameters() if n.startswith(within) and "quant" in n}


def test_what_the_plan_leaves_out_stays_in_float(backend, vit):
    model, *_, images = vit
    first = "blocks.0.attn.matmul_qk"
    quantized, plan = lowered(
        backend, vit, leave=("head.input", "head.weight", "blocks.0.mlp.fc1.weight", f"{first}.lhs")
    )
    assert type(quantized.head) is nn.Linear
    assert {name for name in scales(quantized, "blocks.0.mlp.fc1") if "weight" in name} == set()
    assert len([name for name in scales(quantized, "blocks.0.mlp.fc1") if "input" in name]) == 1
    assert isinstance(quantized.get_submodule(first), QuantMatMul)
    assert isinstance(quantized.get_submodule(first).lhs_quant, nn.Identity)
    with backend.inference(quantized):
        assert relative(quantized(images), reference(model, plan, images)) < 1e-6


def test_inference_sees_what_was_learned_since(backend, vit):
    *_, images = vit
    quantized, _ = lowered(backend, vit)
    with backend.inference(quantized):
        stale = quantized(images)
    with torch.no_grad():
        quantized.blocks[0].mlp.fc1.weight.mul_(1.7)
        for scale, factor in zip(scales(quantized, "blocks.0.mlp.fc1").values(), (1.3, 0.6), strict=True):
            scale.mul_(factor)
        normal = quantized(images)
    with backend.inference(quantized):
        assert torch.equal(quantized(images), normal)
    assert not torch.allclose(normal, stale)


def test_training_moves_scales_and_weights(backend, vit):
    *_, images = vit
    quantized, _ = lowered(backend, vit)
    quantized.requires_grad_(True).train()
    quantized(images).square().mean().backward()
    learned = scales(quantized)
    assert len(learned) > 20
    without = [name for name, value in learned.items() if value.grad is None or not value.grad.isfinite().all()]
    assert without == []
    assert sum(bool(value.grad.any()) for value in learned.values()) > 0.9 * len(learned)
    weights = [d.site.name for d in lowered(backend, vit)[1] if d.site.kind.is_weight]
    assert all(quantized.get_parameter(name).grad.any() for name in weights)


def test_weights_are_the_float_models_own_parameters_in_value(backend, vit):
    model = vit[0]
    quantized, _ = lowered(backend, vit)
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        inside = f"{path}.operation.{leaf}" if "norm" in path else name
        assert torch.equal(quantized.get_parameter(inside), parameter)


def made(kind, *arguments):
    """A quantizer of the kind of that name, whichever plugin it is from."""
    module, _, name = installed().quantizers[kind].partition(":")
    return getattr(importlib.import_module(module), name)(*arguments)


NUMBERS = backend_plans.NUMBERS | {
    "twin": (lambda: made("twin", 0.1, 0.5, 3), [-1, -0.27, 0.7, 5], [-0.4, -0.3, 0.5, 1.5]),
    "noisyquant.noisy": (
        lambda: made("noisyquant.noisy", backend_plans.symmetric(0.5, 4), torch.tensor([0.1, -0.1, 0.2, 0.0])),
        [0.2, 0.2, 1, -9],
        [0.4, 0.1, 0.8, -4],
    ),
    "modelopt.scaled": (
        lambda: made("modelopt.scaled", backend_plans.symmetric(0.5, 4), torch.tensor([1.0, 2.0, 4.0])),
        [0.3, 0.3, 0.3],
        [0.5, 0.25, 0.25],
    ),
    "binary_coding": (
        lambda: made("binary_coding", torch.tensor([[1.0, 0.5], [0.2, 0.1]])),
        [[-2, 0.2], [0.04, 0.25]],
        [[-1.5, 0.5], [0.1, 0.3]],
    ),
}
"""Quantizer → values and their quantized values, computed by hand from each paper's equation."""


def test_every_installed_kind_has_numbers():
    assert {name.partition(",")[0] for name in NUMBERS} == set(installed().quantizers)


class TestBrevitas(BackendContract):
    offer = installed().backends["brevitas"]
    numbers = NUMBERS


@modelopt
class TestModelOpt(BackendContract):
    offer = installed().backends["modelopt"]
    numbers = NUMBERS


class Swin:
    """Shifted windows, masks, and patch merging."""

    def toy(self):
        return lowerable_swin()


@pytest.mark.slow
class TestBrevitasOnSwin(Swin, BackendContract):
    offer = installed().backends["brevitas"]


@modelopt
@pytest.mark.slow
class TestModelOptOnSwin(Swin, BackendContract):
    offer = installed().backends["modelopt"]


@pytest.fixture(scope="module")
def pair():
    pytest.importorskip("modelopt", reason="pip install 'qplug[modelopt]'")
    return [backend_of(name, installed()) for name in ("brevitas", "modelopt")]


@pytest.mark.parametrize("setting", SETTINGS)
def test_one_plan_gives_the_same_bits_on_both(pair, known, setting):
    both = [lowered(backend, known, *SETTINGS[setting])[0] for backend in pair]
    with torch.no_grad():
        assert torch.equal(both[0](known[-1]), both[1](known[-1]))
    with pair[0].inference(both[0]), pair[1].inference(both[1]):
        assert torch.equal(both[0](known[-1]), both[1](known[-1]))


def test_one_plan_gives_the_same_gradients_on_both(pair, vit):
    found = []
    for backend in pair:
        quantized, plan = lowered(backend, vit)
        quantized.requires_grad_(True)(vit[-1]).square().mean().backward()
        weights = [quantized.get_parameter(d.site.name).grad for d in plan if d.site.kind.is_weight]
        found.append((weights, [p.grad for p in scales(quantized).values()]))
    for ours, theirs in zip(*found, strict=True):
        assert len(ours) == len(theirs)
    assert max(relative(a, b) for a, b in zip(found[0][0], found[1][0], strict=True)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "step",
    [
        {"use": "brecq.brecq", "iterations": 4, "batch_size": 4, "scales": True},
        {"use": "mr_biq.reconstruct", "iterations": 4, "batch_size": 4},
    ],
    ids=lambda step: step["use"],
)
def test_reconstruction_learns_the_same_on_both(pair, step, tmp_path):
    """Roundings, codes and the steps of activations, min-max ones here and binary codings if the recipe has them."""
    coding = [{"use": "mr_biq.binary_coding"}] if step["use"].startswith("mr_biq") else []
    found = []
    for backend in ("brevitas", "modelopt"):
        registry = toy_registry()
        data = {"source": "toy", "split": "train"}
        recipe = recipe_type(registry).model_validate(
            {
                "version": 1,
                "model": {"source": "toy"},
                "data": {"calibration": data, "evaluation": data | {"split": "test"}},
                "backend": backend,
                "quantize": {"weights": {"bits": 2}, "activations": {"bits": 8}},
                "techniques": [step, *coding, {"use": "toy.minmax"}],
            }
        )
        found.append(qplug.run(recipe, out=tmp_path / backend, registry=registry))
    assert any("error of" in decision.reason or "learned" in decision.reason for decision in found[0].plan)
    assert found[0].plan.to_dict() == found[1].plan.to_dict()
    models = [qplug.load_quantized(result.folder, registry=toy_registry()) for result in found]
    with torch.no_grad():
        assert torch.equal(*(model(toy_images(3)) for model in models))
