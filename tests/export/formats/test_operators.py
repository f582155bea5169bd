"""Each operator of a format equals its quantizer: exactly on the grid, at every width and axis."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
from export_toys import decision, in_onnx_runtime
from qplug_plugins.mr_biq.quantizer import BinaryCodingQuantizer
from qplug_plugins.noisyquant.quantizer import NoisyQuantizer
from qplug_plugins.ptq4vit.quantizer import TwinQuantizer
from torch import nn

from qplug import LogQuantizer, Quantizer, Region, RegionQuantizer, UniformQuantizer
from qplug.core.types import SiteKind
from qplug.export.formats.fallback import DecodedWeight, Lookup, Traced
from qplug.export.formats.qdq import Qdq, QdqActivation, QdqWeight, ShiftedActivation
from qplug.export.formats.qonnx import Qonnx
from qplug.export.formats.torch_program import PackedWeight, Plain
from qplug.quantization.quantizers import integer_range

ALL = (2, 4, 8, 16)
WIDTHS = [2, 3, 4, 5, 6, 7, 8, 9, 12, 16]
WEIGHT = SiteKind.LINEAR_WEIGHT


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uniform(bits: int, signed: bool, shape: tuple[int, ...] = (), zero: bool = False) -> UniformQuantizer:
    """Scales in powers of two, so that quotients are exact and a tie is a tie on both sides; even zero points."""
    low, high = integer_range(bits, signed)
    scale = torch.exp2(torch.arange(max(1, prod(shape)), dtype=torch.float32) % 3 - bits + 2).view(shape)
    return UniformQuantizer(scale, torch.full(shape, float((low + high) // 4 * 2)) if zero else None, bits, signed)


@pytest.mark.slow
def test_activations_at_every_width():
    quantizers = [uniform(bits, signed, zero=not signed) for bits in WIDTHS for signed in (True, False)]
    modules = [Qdq(ALL).activation(decision(quantizer), transposed=False) for quantizer in quantizers]
    x = values(3, 6, 8) * 4
    for quantizer, module, found in zip(quantizers, modules, in_onnx_runtime(modules, x), strict=True):
        assert torch.equal(found, quantizer.infer(x)), quantizer.describe()
        assert isinstance(module, QdqActivation if quantizer.bits in (*range(2, 9), 16) else Traced)
        assert getattr(module, "clips", False) is (quantizer.bits in (3, 5, 6, 7))


@pytest.mark.slow
@pytest.mark.parametrize("transposed", [False, True])
def test_scales_along_any_axis(transposed):
    """Scales per channel, token, head and along two axes; several scales become plain operators."""
    shapes = [(8,), (6, 1), (3, 1, 1), (1,), (3, 1, 8), ()]
    quantizers = [uniform(8, True, shape, zero=True) for shape in shapes]
    modules = [Qdq().activation(decision(quantizer), transposed) for quantizer in quantizers]
    x = values(2, 3, 6, 8) * 3
    for shape, quantizer, module, found in zip(shapes, quantizers, modules, in_onnx_runtime(modules, x), strict=True):
        expected = quantizer.infer(x)
        assert torch.equal(found, expected.transpose(-2, -1) if transposed else expected), shape
        assert isinstance(module, QdqActivation if prod(shape) == 1 else Traced)


@pytest.mark.slow
def test_ties_of_images_round_as_they_were_simulated():
    """Pixels in −1 … 1 by a range that just holds them: x/s + z is p + 1/2, but for float32's rounding."""
    quantizer = UniformQuantizer(torch.tensor(2.0 / 255.0), torch.tensor(128.0), 8, False)
    x = ((torch.arange(256.0) / 255.0 - 0.5) / 0.5).expand(2, 4, 256)
    site = decision(quantizer)
    plain, shifted = (Qdq(on_grid=paths).activation(site, transposed=False) for paths in ((), ("layer",)))
    assert isinstance(shifted, ShiftedActivation)
    late, right = in_onnx_runtime([plain, shifted], x)
    expected = quantizer.infer(x)
    assert torch.equal(right, expected)
    assert (late != expected).float().mean() > 0.1


class Weight(nn.Module):
    """A weight, as often as there are inputs."""

    def __init__(self, weight: nn.Module) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1, :1] * 0.0 + self.weight()


@pytest.mark.slow
@pytest.mark.parametrize("transposed", [False, True])
def test_weights_are_integers_of_at_least_their_bits(transposed):
    quantizers = [uniform(bits, bits % 2 == 0, (6, 1), bits % 2 > 0) for bits in WIDTHS]
    weights = [quantizer.infer(values(6, 8)) for quantizer in quantizers]
    beside = Qdq().activation(decision(uniform(8, True)), transposed=False)
    modules = [
        Qdq(ALL).weight(decision(quantizer, WEIGHT), weight, transposed, beside)
        for quantizer, weight in zip(quantizers, weights, strict=True)
    ]
    found = in_onnx_runtime([Weight(module) for module in modules], torch.zeros(2, 1, 1))
    for quantizer, weight, module, came in zip(quantizers, weights, modules, found, strict=True):
        assert isinstance(module, QdqWeight)
        assert not module.codes.is_floating_point()
        assert torch.equal(came[0], weight.t() if transposed else weight), quantizer.describe()


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_torch_programs_weights_are_packed(bits):
    quantizer = uniform(bits, True, (6, 1))
    weight = quantizer.infer(values(6, 7))
    module = Plain().weight(decision(quantizer, WEIGHT), weight, True, None)
    assert isinstance(module, PackedWeight)
    assert torch.equal(module(), weight.t())
    width = next(width for width in ALL if width >= bits)
    assert module.packed.nbytes == -(-weight.numel() * width // 8)


def test_weights_beside_values_that_are_no_integers_are_decoded_in_sight():
    for bits, kind in ((4, DecodedWeight), (2, DecodedWeight), (8, QdqWeight)):
        quantizer = uniform(bits, True, (6, 1))
        module = Qdq(ALL).weight(
            decision(quantizer, WEIGHT), quantizer.infer(values(6, 8)), True, Traced(quantizer, False)
        )
        assert isinstance(module, kind)


@pytest.mark.slow
def test_other_quantizers_by_their_own_operators():
    regions = (Region(-16, 2, -4, -1), Region(-4, 0, -4, 3), Region(4, 1, 2, 7), Region(16, 3, 2, 7))
    beyond = UniformQuantizer(torch.tensor(0.125), torch.tensor(300.0), 8, False)  # a zero point that no byte holds
    quantizers: list[Quantizer] = [
        RegionQuantizer(0.0625, regions, 5),
        TwinQuantizer(0.0625, 0.5, 4),
        NoisyQuantizer(uniform(6, True), values(8, seed=1)),
        beyond,
        LogQuantizer(4.0, 1, 4),
        LogQuantizer(4.0, 2, 4),
    ]
    modules = [Qdq().activation(decision(quantizer), transposed=False) for quantizer in quantizers]
    x = values(3, 6, 8) * 2
    for quantizer, module, found in zip(quantizers, modules, in_onnx_runtime(modules, x), strict=True):
        assert isinstance(module, Lookup if isinstance(quantizer, RegionQuantizer) else Traced)
        assert torch.allclose(found, quantizer.infer(x), rtol=1e-6, atol=0.0), quantizer.describe()


@pytest.mark.slow
def test_binary_codes_are_decoded_in_the_graph():
    quantizer = BinaryCodingQuantizer(torch.tensor([[0.5, 0.25], [0.75, 0.125]]))
    weight = quantizer.infer(values(2, 8))
    module = Qdq(ALL).weight(decision(quantizer, WEIGHT), weight, False, None)
    assert isinstance(module, DecodedWeight)
    assert torch.equal(in_onnx_runtime([Weight(module)], torch.zeros(2, 1, 1))[0][1], weight)


@pytest.mark.slow
def test_quant_is_qonnxs():
    """Against its definition in float64: clamp(round(x/s + z), l, h), less z, times s."""
    quantizers = [uniform(bits, signed, (8,), zero=True) for bits in WIDTHS for signed in (True, False)]
    modules = [Qonnx().activation(decision(quantizer), transposed=False) for quantizer in quantizers]
    x = values(3, 6, 8) * 4
    for quantizer, found in zip(quantizers, in_onnx_runtime(modules, x, 21), strict=True):
        low, high = integer_range(quantizer.bits, quantizer.signed)
        scale, zero = quantizer.scale.double().numpy(), quantizer.zero_point.double().numpy()
        oracle = (np.clip(np.round(x.double().numpy() / scale + zero), low, high) - zero) * scale
        assert np.array_equal(found.numpy(), oracle.astype(np.float32)), quantizer.describe()
