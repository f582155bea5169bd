"""brevitas holds every quantized operation, and computes the plan's quantizers."""

import pytest
import torch
from backend_toys import REGIONS, lowered
from brevitas.core.quant import RescalingIntQuant
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear
from numeric_toys import calibrated, swin
from torch import nn

from qplug import QuantSpec, RegionQuantizer, SiteKind, UniformQuantizer
from qplug.quantization.backends.brevitas import BrevitasBackend
from qplug.quantization.backends.brevitas_quant import CustomTensorQuant, InferenceHandler, planned, tensor_quant
from qplug.testing import toy_images

BACKEND = BrevitasBackend()


@pytest.fixture(scope="module", params=["vit", "swin"])
def known(request):
    if request.param == "vit":
        return (*calibrated(), toy_images(3))
    return (*calibrated(swin().requires_grad_(False), torch.randn(2, 3, 32, 32)), torch.randn(2, 3, 32, 32))


@pytest.fixture(scope="module")
def vit():
    return (*calibrated(), toy_images(3))


def test_every_quantized_operation_is_a_layer_of_brevitas(known):
    _, found, *_ = known
    quantized, _ = lowered(BACKEND, known)
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
    quantized, plan = lowered(BACKEND, vit)
    layer = quantized.blocks[0].mlp.fc2
    assert isinstance(layer.weight_quant.tensor_quant, RescalingIntQuant)
    assert isinstance(layer.input_quant.fused_activation_quant_proxy.tensor_quant, CustomTensorQuant)
    natives = sum(isinstance(m, RescalingIntQuant) for m in quantized.modules())
    customs = sum(isinstance(m, CustomTensorQuant) for m in quantized.modules())
    assert customs == sum(isinstance(d.quantizer, RegionQuantizer) for d in plan) == 2
    assert natives == len(plan.decisions) - 2


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


def test_inference_leaves_no_values_behind(vit):
    quantized, _ = lowered(BACKEND, vit)
    with BACKEND.inference(quantized):
        quantized(toy_images(3))
        assert sum(isinstance(m, InferenceHandler) and m.cached is not None for m in quantized.modules()) == 10
    assert [name for name, m in quantized.named_modules() if isinstance(m, InferenceHandler)] == []


def test_lowering_copies_the_scale():
    quantizer = UniformQuantizer(torch.tensor(0.1), torch.tensor(2.0), 4, False)
    module = tensor_quant(quantizer)
    with torch.no_grad():
        module.scaling_impl.value.mul_(3)
    assert quantizer.scale == torch.tensor(0.1)
