"""Both backends compute the plan's quantizers: the same numbers to the last bit, and the same gradients."""

import copy
import importlib

import pytest
import torch
from backend_toys import REGIONS, SETTINGS, lowered, reference, relative
from numeric_toys import calibrated, swin
from torch import nn

import qplug
from qplug import InputError, Plan, QuantSpec, RegionQuantizer, Site, SiteKind, UniformQuantizer
from qplug.hooks.registry import backend_of, installed
from qplug.quantization.backends.lowering import QuantMatMul
from qplug.quantization.plan import Decision
from qplug.recipe import recipe_type
from qplug.testing import toy_images, toy_registry

pytestmark = [
    pytest.mark.filterwarnings("ignore:Computing zero point of output accumulator:UserWarning:brevitas"),
    pytest.mark.filterwarnings("ignore:Could not compute output scale factor:UserWarning:brevitas"),
]


@pytest.fixture(scope="module", params=["brevitas", "modelopt"])
def backend(request):
    pytest.importorskip(request.param, reason=f"pip install 'qplug[{request.param}]'")
    return backend_of(request.param, installed())


@pytest.fixture(scope="module", params=["vit", "swin"])
def known(request):
    if request.param == "vit":
        return (*calibrated(), toy_images(3))
    return (*calibrated(swin().requires_grad_(False), torch.randn(2, 3, 32, 32)), torch.randn(2, 3, 32, 32))


@pytest.fixture(scope="module")
def vit():
    return (*calibrated(), toy_images(3))


def test_inference_within_inference_leaves_the_outer_one_as_it_is(backend, vit):
    quantized, _ = lowered(backend, vit)
    images = vit[-1]
    with backend.inference(quantized):
        before = quantized(images)
        with backend.inference(quantized):
            assert torch.equal(quantized(images), before)
        quantized.head.weight.data.mul_(2)  # the outer context holds its values
        assert torch.equal(quantized(images), before)
    with torch.no_grad():
        assert relative(quantized(images), before) > 0.1


def scales(model, within=""):
    """Parameters that lowering made learnable, by name."""
    return {n: p for n, p in model.named_parameters() if n.startswith(within) and "quant" in n}


@pytest.mark.parametrize("setting", SETTINGS)
def test_outputs_are_those_of_plain_torch_and_inference_gives_the_same_bits(backend, known, setting):
    model, *_, images = known
    quantized, plan = lowered(backend, known, *SETTINGS[setting])
    with torch.no_grad():
        normal = quantized(images)
    with backend.inference(quantized):
        inferred = quantized(images)
    assert torch.equal(inferred, normal)
    assert relative(normal, reference(model, plan, images)) < 1e-6
    if setting != "16 bits":
        assert relative(normal, model(images)) > 1e-3  # something was quantized


def test_with_quantizers_off_the_model_computes_its_float_values(backend, known):
    model, *_, images = known
    quantized, _ = lowered(backend, known)
    with torch.no_grad():
        on = quantized(images)
        with backend.switched_off(quantized):
            assert torch.equal(quantized(images), model(images))
        assert torch.equal(quantized(images), on)


def test_sites_outside_the_plan_stay_in_float(backend, vit):
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


class Shared(nn.Module):
    """One linear under two names, called by the second."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.again = self.first

    def forward(self, x):
        return self.again(x)


def test_a_module_under_two_names_is_quantized_under_both(backend):
    torch.manual_seed(0)
    known = (*calibrated(Shared(), torch.randn(4, 6)), torch.randn(3, 6))
    quantized, plan = lowered(backend, known)
    assert quantized.again is quantized.first
    with backend.inference(quantized):
        assert torch.equal(quantized(known[-1]), reference(known[0], plan, known[-1]))


def test_inference_leaves_the_model_as_it_was(backend, vit):
    *_, images = vit
    quantized, _ = lowered(backend, vit)
    state = {name: value.clone() for name, value in quantized.state_dict().items()}
    modules = [name for name, _ in quantized.named_modules()]
    with torch.no_grad():
        before = quantized(images)
    for _ in range(2):
        with backend.inference(quantized):
            assert not quantized(images).requires_grad
    with pytest.raises(ZeroDivisionError), backend.inference(quantized):
        raise ZeroDivisionError
    assert quantized.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in quantized.state_dict().items())
    assert [name for name, _ in quantized.named_modules()] == modules
    with torch.no_grad():
        assert torch.equal(quantized(images), before)
    assert quantized(images).requires_grad


def test_inference_uses_learned_values(backend, vit):
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


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": (1, 2)},
        {"groups": 4, "bias": False},
        {"dilation": 2, "padding": "same"},
        {"padding": 1, "padding_mode": "circular"},
        {"padding": 1, "padding_mode": "reflect"},
    ],
    ids=str,
)
def test_convolutions(backend, options):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(4, 8, 3, **options), torch.randn(2, 4, 9, 9)
    model = nn.Sequential(conv)
    plan = Plan()
    low, high = conv.weight.flatten(1).amin(1).view(8, 1, 1, 1), conv.weight.flatten(1).amax(1).view(8, 1, 1, 1)
    for role, kind, a, b in (
        ("weight", SiteKind.CONV_WEIGHT, low, high),
        ("input", SiteKind.CONV_INPUT, x.min(), x.max()),
    ):
        site = Site(f"0.{role}", kind, "0", role, ())
        spec = QuantSpec(4)
        plan.decisions[site.name] = Decision(site, spec, UniformQuantizer.from_range(a, b, spec), "toy", "", "recipe")
    expected = reference(model, plan, x)
    quantized = backend.apply(copy.deepcopy(model), plan)
    with torch.no_grad():
        assert relative(quantized(x), expected) < 1e-6
        with backend.switched_off(quantized):
            assert torch.equal(quantized(x), model(x))


def test_a_subclass_is_refused_with_a_fix(backend):
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    site = Site("0.weight", SiteKind.LINEAR_WEIGHT, "0", "weight", (2, 3))
    quantizer = UniformQuantizer(torch.tensor(0.1), None, 4, True)
    plan = Plan({site.name: Decision(site, QuantSpec(4), quantizer, "toy", "", "recipe")})
    with pytest.raises(InputError, match=r"match: '0', skip: true") as caught:
        backend.apply(nn.Sequential(Scaled(3, 2)), plan)
    assert caught.value.where == "0"


def symmetric(scale, bits, signed=True):
    return UniformQuantizer(torch.tensor(scale), None, bits, signed)


def made(kind, *arguments):
    """A quantizer of the kind of that name, whichever plugin it is from."""
    module, _, name = installed().quantizers[kind].partition(":")
    return getattr(importlib.import_module(module), name)(*arguments)


NUMBERS = {
    "uniform": (lambda: symmetric(0.5, 3), [-3, -1.2, -0.25, 0.3, 0.75, 9], [-2, -1, 0, 0.5, 1, 1.5]),
    "uniform, unsigned": (lambda: symmetric(0.5, 3, signed=False), [-1, 0.2, 0.3, 9], [0, 0, 0.5, 3.5]),
    "uniform, zero point": (
        lambda: UniformQuantizer(torch.tensor(0.5), torch.tensor(2.0), 3, False),
        [-2, -0.6, 0.3, 9],
        [-1, -0.5, 0.5, 2.5],
    ),
    "uniform, channels": (
        lambda: UniformQuantizer(torch.tensor([0.5, 1.0, 2.0]), None, 3, True),
        [0.8, 0.8, 0.8],
        [1, 1, 0],
    ),
    "log": (lambda: made("log", 1.0, 1, 2), [1, 0.6, 0.3, 0.1, 0, -1], [1, 0.5, 0.25, 0, 0, 0]),
    "log, √2": (lambda: made("log", 2.0, 2, 3), [3, 1.4, 1.1], [2, 2**0.5, 1]),
    "regions": (
        lambda: RegionQuantizer(0.05, REGIONS, 4),
        [-1, -0.05, 0.4, 1, 2, 20],
        [-0.15, -0.05, 0.4, 1.2, 1.6, 11.2],
    ),
    "twin": (lambda: made("twin", 0.1, 0.5, 3), [-1, -0.27, 0.7, 5], [-0.4, -0.3, 0.5, 1.5]),
    "noisyquant.noisy": (
        lambda: made("noisyquant.noisy", symmetric(0.5, 4), torch.tensor([0.1, -0.1, 0.2, 0.0])),
        [0.2, 0.2, 1, -9],
        [0.4, 0.1, 0.8, -4],
    ),
    "modelopt.scaled": (
        lambda: made("modelopt.scaled", symmetric(0.5, 4), torch.tensor([1.0, 2.0, 4.0])),
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


@pytest.mark.parametrize("name", NUMBERS)
def test_the_reference_numbers(backend, name):
    make, given, expected = NUMBERS[name]
    quantizer, x = make(), torch.tensor(given, dtype=torch.float32)
    role, kind = ("weight", SiteKind.LINEAR_WEIGHT) if x.dim() == 2 else ("input", SiteKind.LINEAR_INPUT)
    linear = nn.Linear(x.shape[-1], x.shape[-1], bias=False)
    with torch.no_grad():
        linear.weight.copy_(x if role == "weight" else torch.eye(len(x)))
    site = Site(f"0.{role}", kind, "0", role, tuple(x.shape))
    plan = Plan({site.name: Decision(site, QuantSpec(quantizer.bits), quantizer, "toy", "", "recipe")})
    quantized = backend.apply(nn.Sequential(linear), plan)
    shown = torch.eye(len(x)) if role == "weight" else x.unsqueeze(0)
    with torch.no_grad():
        normal = quantized(shown)
    with backend.inference(quantized):
        inferred = quantized(shown)
    values = normal.T if role == "weight" else normal[0]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float32), rtol=1e-6, atol=1e-7)
    assert torch.equal(values, make().infer(x))
    assert torch.equal(inferred, normal)


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
