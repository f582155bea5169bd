"""brevitas holds every quantised operation, and computes what the plan's quantizers say."""

import copy
from dataclasses import replace

import pytest
import torch
from brevitas.core.quant import RescalingIntQuant
from brevitas.core.scaling import ParameterScaling
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear
from numeric_toys import calibrated, swin
from torch import nn

from qplug import Granularity, InputError, Plan, QuantSpec, Region, RegionQuantizer, Site, SiteKind, UniformQuantizer
from qplug.backends.brevitas import BrevitasBackend, QuantMatMul
from qplug.backends.brevitas_quant import CustomTensorQuant, planned, tensor_quant
from qplug.models.explicit import MatMul
from qplug.plan import Decision
from qplug.testing import toy_images

T, C, H = Granularity.PER_TENSOR, Granularity.PER_CHANNEL, Granularity.PER_HEAD
BACKEND = BrevitasBackend()
REGIONS = (Region(-(1 << 30), 0, -3, 0), Region(0, 3, 0, 3), Region(32, 5, 0, 7))

SETTINGS = {
    "4 bits": (QuantSpec(4, C), QuantSpec(4)),
    "weights per tensor": (QuantSpec(3, T), QuantSpec(8)),
    "asymmetric": (QuantSpec(4, C, False), QuantSpec(4, T, False)),
    "float zero point": (QuantSpec(4, C), QuantSpec(4, T, False, "float")),
    "channels of activations": (QuantSpec(6, C), QuantSpec(5, C)),
    "heads": (QuantSpec(4, C), QuantSpec(4, H)),
    "16 bits": (QuantSpec(16, C), QuantSpec(16)),
}


def plan_of(found, calibration, weights, activations, leave=()):
    plan = Plan()
    for site in found.sites:
        if site.name in leave:
            continue
        spec = weights if site.kind.is_weight else activations
        if spec.granularity is H and site.head_axis is None:
            spec = replace(spec, granularity=T)
        stats = calibration.stats(site)
        quantizer = UniformQuantizer.from_range(*stats.range(spec.granularity), spec)
        if site.kind is SiteKind.POST_GELU and activations == QuantSpec(4):
            quantizer = RegionQuantizer(0.05, REGIONS, 4)
        plan.decisions[site.name] = Decision(site, spec, quantizer, "toy", "", "recipe")
    return plan


@pytest.fixture(scope="module", params=["vit", "swin"])
def known(request):
    if request.param == "vit":
        return (*calibrated(), toy_images(3))
    return (*calibrated(swin().requires_grad_(False), torch.randn(2, 3, 32, 32)), torch.randn(2, 3, 32, 32))


@pytest.fixture(scope="module")
def vit():
    return (*calibrated(), toy_images(3))


def lowered(known, weights=QuantSpec(4, C), activations=QuantSpec(4), leave=()):  # noqa: B008  frozen
    model, found, calibration, _ = known
    plan = plan_of(found, calibration, weights, activations, leave)
    return BACKEND.apply(copy.deepcopy(model), plan), plan


@torch.no_grad()
def reference(model, plan, images):
    """The same in plain torch: weights replaced by their values, inputs by hooks, matmuls by theirs."""
    model = copy.deepcopy(model)
    for path in plan.modules():
        module, quantizers = model.get_submodule(path), plan.of(path)
        if "weight" in quantizers:
            module.weight.copy_(quantizers["weight"](module.weight))
        roles = ("lhs", "rhs") if isinstance(module, MatMul) else ("input",)
        chosen = [quantizers.get(role) for role in roles]
        module.register_forward_pre_hook(
            lambda _, args, chosen=chosen: tuple(q(x) if q else x for q, x in zip(chosen, args, strict=True))
        )
    return model(images)


def relative(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.filterwarnings("ignore:Computing zero point of output accumulator:UserWarning:brevitas")
@pytest.mark.filterwarnings("ignore:Could not compute output scale factor:UserWarning:brevitas")
@pytest.mark.parametrize("setting", SETTINGS)
def test_outputs_are_those_of_plain_torch_and_inference_gives_the_same_bits(known, setting):
    model, *_, images = known
    quantized, plan = lowered(known, *SETTINGS[setting])
    with torch.no_grad():
        normal = quantized(images)
    with BACKEND.inference(quantized):
        inferred = quantized(images)
    assert torch.equal(inferred, normal)
    assert relative(normal, reference(model, plan, images)) < 1e-6
    if setting != "16 bits":
        assert relative(normal, model(images)) > 1e-3  # something was quantised


def test_with_quantizers_off_the_model_computes_exactly_what_it_did(known):
    model, *_, images = known
    quantized, _ = lowered(known)
    with torch.no_grad():
        on = quantized(images)
        with BACKEND.switched_off(quantized):
            assert torch.equal(quantized(images), model(images))
        assert torch.equal(quantized(images), on)


def test_every_quantised_operation_is_a_layer_of_brevitas(known):
    _, found, *_ = known
    quantized, _ = lowered(known)
    count = {
        kind: sum(isinstance(m, kind) for m in quantized.modules())
        for kind in (QuantLinear, QuantConv2d, QuantIdentity)
    }
    kinds = [site.kind for site in found.sites]
    apart = [
        s
        for s in found.sites
        if s.role in ("lhs", "rhs") or s.kind in (SiteKind.SOFTMAX_INPUT, SiteKind.LAYERNORM_INPUT)
    ]
    assert count[QuantLinear] == kinds.count(SiteKind.LINEAR_WEIGHT)
    assert count[QuantConv2d] == kinds.count(SiteKind.CONV_WEIGHT)
    assert count[QuantIdentity] == len(apart)
    assert not [m for m in quantized.modules() if type(m) in (nn.Linear, nn.Conv2d)]
    assert all(
        m.weight_quant.is_quant_enabled for m in quantized.modules() if isinstance(m, (QuantLinear, QuantConv2d))
    )
    assert all(m.input_quant.is_quant_enabled for m in quantized.modules() if isinstance(m, (QuantLinear, QuantConv2d)))


def test_uniform_is_native_and_anything_else_a_custom_tensor_quant(vit):
    quantized, plan = lowered(vit)
    layer = quantized.blocks[0].mlp.fc2
    assert isinstance(layer.weight_quant.tensor_quant, RescalingIntQuant)
    assert isinstance(layer.input_quant.fused_activation_quant_proxy.tensor_quant, CustomTensorQuant)
    natives = sum(isinstance(m, RescalingIntQuant) for m in quantized.modules())
    customs = sum(isinstance(m, CustomTensorQuant) for m in quantized.modules())
    assert customs == sum(isinstance(d.quantizer, RegionQuantizer) for d in plan) == 2
    assert natives == len(plan.decisions) - 2


def test_what_the_plan_leaves_out_stays_in_float(vit):
    model, *_, images = vit
    first = "blocks.0.attn.matmul_qk"
    quantized, plan = lowered(vit, leave=("head.input", "head.weight", "blocks.0.mlp.fc1.weight", f"{first}.lhs"))
    assert type(quantized.head) is nn.Linear
    assert not quantized.blocks[0].mlp.fc1.weight_quant.is_quant_enabled
    assert quantized.blocks[0].mlp.fc1.input_quant.is_quant_enabled
    assert isinstance(quantized.get_submodule(first), QuantMatMul)
    assert isinstance(quantized.get_submodule(first).lhs_quant, nn.Identity)
    with BACKEND.inference(quantized):
        assert relative(quantized(images), reference(model, plan, images)) < 1e-6


def test_inference_leaves_the_model_as_it_was(vit):
    *_, images = vit
    quantized, _ = lowered(vit)
    state = {name: value.clone() for name, value in quantized.state_dict().items()}
    modules = [name for name, _ in quantized.named_modules()]
    with torch.no_grad():
        before = quantized(images)
    for _ in range(2):
        with BACKEND.inference(quantized):
            assert not quantized(images).requires_grad
    with pytest.raises(ZeroDivisionError), BACKEND.inference(quantized):
        raise ZeroDivisionError
    assert quantized.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in quantized.state_dict().items())
    assert [name for name, _ in quantized.named_modules()] == modules
    with torch.no_grad():
        assert torch.equal(quantized(images), before)
    assert quantized(images).requires_grad


def test_inference_sees_what_was_learned_since(vit):
    *_, images = vit
    quantized, _ = lowered(vit)
    layer = quantized.blocks[0].mlp.fc1
    with BACKEND.inference(quantized):
        stale = quantized(images)
    with torch.no_grad():
        layer.weight.mul_(1.7)
        layer.weight_quant.tensor_quant.scaling_impl.value.mul_(1.3)
        layer.input_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.value.mul_(0.6)
        normal = quantized(images)
    with BACKEND.inference(quantized):
        assert torch.equal(quantized(images), normal)
    assert not torch.allclose(normal, stale)


def test_training_moves_scales_and_weights(vit):
    *_, images = vit
    quantized, _ = lowered(vit)
    quantized.requires_grad_(True).train()
    quantized(images).square().mean().backward()
    scales = {name: m.value for name, m in quantized.named_modules() if isinstance(m, ParameterScaling)}
    assert len(scales) > 20
    without = [name for name, value in scales.items() if value.grad is None or not value.grad.isfinite().all()]
    assert without == []
    assert sum(bool(value.grad.any()) for value in scales.values()) > 0.9 * len(scales)
    layers = [m for m in quantized.modules() if isinstance(m, (QuantLinear, QuantConv2d))]
    assert all(m.weight.grad is not None and m.weight.grad.any() for m in layers)


def test_weights_are_the_float_models_own_parameters_in_value(vit):
    model = vit[0]
    quantized, _ = lowered(vit)
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        inside = f"{path}.operation.{leaf}" if "norm" in path else name
        assert torch.equal(quantized.get_parameter(inside), parameter)


KINDS = {
    "signed": UniformQuantizer(torch.tensor(0.13), None, 4, True),
    "unsigned": UniformQuantizer(torch.tensor(0.07), None, 4, False),
    "asymmetric": UniformQuantizer(torch.tensor(0.11), torch.tensor(5.0), 4, False),
    "channels": UniformQuantizer(torch.rand(6, 1) + 0.01, None, 3, True),
    "asymmetric channels": UniformQuantizer(torch.rand(6, 1) + 0.01, torch.arange(6.0).view(6, 1), 3, False),
    "2 bits": UniformQuantizer(torch.tensor(0.5), None, 2, True),
    "16 bits": UniformQuantizer(torch.tensor(1e-4), None, 16, True),
    "empty range": UniformQuantizer.from_range(torch.zeros(6, 1), torch.zeros(6, 1), QuantSpec(4)),
    "regions": RegionQuantizer(0.05, REGIONS, 4),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_lowered_quantizer_gives_the_same_bits_and_can_be_read_back(kind):
    quantizer, x = KINDS[kind], torch.randn(6, 500, generator=torch.Generator().manual_seed(0))
    module = tensor_quant(quantizer)
    values = module(x)[0]
    assert torch.equal(values, quantizer(x))
    back = planned(module)
    assert type(back) is type(quantizer)
    assert back.to_dict() == quantizer.to_dict()
    assert int(module(x)[3]) == quantizer.bits


def test_lowering_copies_the_scale():
    quantizer = UniformQuantizer(torch.tensor(0.1), torch.tensor(2.0), 4, False)
    module = tensor_quant(quantizer)
    with torch.no_grad():
        module.scaling_impl.value.mul_(3)
    assert quantizer.scale == torch.tensor(0.1)


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
def test_convolutions(options):
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
    quantized = BACKEND.apply(copy.deepcopy(model), plan)
    with torch.no_grad():
        assert relative(quantized(x), expected) < 1e-6
        with BACKEND.switched_off(quantized):
            assert torch.equal(quantized(x), model(x))


def test_a_subclass_that_may_do_more_is_refused_and_says_what_to_do():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    site = Site("0.weight", SiteKind.LINEAR_WEIGHT, "0", "weight", (2, 3))
    quantizer = UniformQuantizer(torch.tensor(0.1), None, 4, True)
    plan = Plan({site.name: Decision(site, QuantSpec(4), quantizer, "toy", "", "recipe")})
    with pytest.raises(InputError, match=r"match: '0', skip: true") as caught:
        BACKEND.apply(nn.Sequential(Scaled(3, 2)), plan)
    assert caught.value.where == "0"
