"""Products of bytes are exact on every processor, unless the file is ``saturating``."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from deploy_toys import executed, exported, products, unsigned
from export_toys import decision, toy_run
from hypothesis import given, strategies as st
from torch import Tensor, nn

from qplug import InputError, ParityError, UniformQuantizer
from qplug.core.types import SiteKind
from qplug.export.cpu import SATURATING, caution, processor
from qplug.export.export_run import export_run
from qplug.export.formats.affine import saturates
from qplug.export.formats.integer_file import integer_file
from qplug.export.formats.integers import Integers
from qplug.export.formats.onnx_file import onnx_file
from qplug.export.formats.qdq import Qdq, QdqActivation
from qplug.export.formats.qdq_file import qdq_file
from qplug.pipeline.load_run import load_planned
from qplug.quantization.plan import Plan
from qplug.testing import toy_images, toy_registry


def added_in_16_bits(left: np.ndarray, right: np.ndarray) -> int:
    """VPMADDUBSW and VPMADDWD of two rows of bytes: pairs of products saturate, and their sum does not."""
    pairs = (left.astype(int) * right.astype(int)).reshape(-1, 2).sum(1)
    return int(pairs.clip(-(2**15), 2**15 - 1).sum())


BYTES = st.lists(st.integers(0, 255), min_size=8, max_size=8)


@given(BYTES, st.lists(st.integers(-128, 127), min_size=8, max_size=8), st.integers(0, 255))
def test_signed_bytes_in_a_file_are_exact_even_in_16_bits(left, right, largest):
    a, b = np.minimum(left, largest), np.array(right)
    if not saturates(largest, torch.from_numpy(b)):
        assert added_in_16_bits(a, b) == int(a @ b)


@pytest.mark.parametrize("largest", [1, 15, 127, 200, 255])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_bound_is_the_tightest_for_any_pair(largest, sign):
    bound = next((b for b in range(1, 128) if saturates(largest, torch.tensor([b]))), None)
    assert (bound is None) == (largest <= 127 + (2 * 128 * 127 > 2**15 - 1))
    if bound is not None:
        left, right = np.full(8, largest), np.full(8, sign * bound)
        beyond = added_in_16_bits(left, right) != int(left @ right)
        assert beyond or sign * 2 * largest * bound >= -(2**15)  # 16 bits hold one more negative value
        assert added_in_16_bits(left, right - sign) == int(left @ (right - sign))


def activation(bits: int, signed: bool) -> UniformQuantizer:
    return UniformQuantizer(torch.tensor(0.25), None if signed else torch.tensor(3.0), bits, signed)


@pytest.mark.parametrize(
    ("left", "bits", "held"),
    [
        (activation(8, False), 8, torch.uint8),
        (activation(8, True), 8, torch.uint8),
        (activation(8, False), 7, torch.int8),
        (activation(7, False), 8, torch.int8),
        (activation(7, True), 8, torch.uint8),  # −64 … 63 are 64 … 191 without a sign
        (activation(5, True), 8, torch.uint8),
        (activation(16, True), 8, torch.int8),  # no runtime multiplies these as integers
    ],
)
def test_a_weights_bytes_are_signed_only_if_no_processor_saturates(left, bits, held):
    form = Qdq((8, 16))
    beside = form.activation(decision(left), transposed=False)
    assert isinstance(beside, QdqActivation)
    quantizer = UniformQuantizer(torch.tensor([[0.5], [0.25]]), None, bits, True)
    limit = 2.0 ** (bits - 1) - 1
    weight = torch.tensor([[limit, -limit], [1.0, 2.0]]) * quantizer.scale
    found = form.weight(decision(quantizer, SiteKind.LINEAR_WEIGHT), weight, transposed=True, beside=beside)
    assert found.codes.dtype == held
    codes = found.codes.to(torch.int32) - found.zero_point.to(torch.int32)
    assert torch.equal(codes.t() * quantizer.scale, weight)
    asked = Qdq((8, 16), saturating=True)
    beside = asked.activation(decision(left), transposed=False)
    assert (
        asked.weight(decision(quantizer, SiteKind.LINEAR_WEIGHT), weight, transposed=True, beside=beside).codes.dtype
        == torch.int8
    )
    assert (beside.zero_point.dtype in (torch.int8, torch.int16)) is left.signed


class Multiplied(nn.Module):
    """x·W, both quantized."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.left(x).matmul(self.right())
        return product


@pytest.mark.slow
@pytest.mark.parametrize("saturating", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 5])
def test_the_largest_bytes_multiply_exactly(bits, signed, saturating):
    """The largest products of bytes: sums of two are 64,770, nearly twice the largest integer of 16 bits."""
    left, right = activation(bits, signed), UniformQuantizer(torch.tensor(0.5), None, 8, True)
    form = Qdq((8,), saturating=saturating)
    beside = form.activation(decision(left), transposed=False)
    weight = torch.full((4, 32), 63.5) * torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None]
    module = Multiplied(
        beside, form.weight(decision(right, SiteKind.LINEAR_WEIGHT), weight, transposed=True, beside=beside)
    )
    x = torch.full((2, 3, 32), 1e3) * torch.tensor([1.0, -1.0])[:, None, None]
    expected = left(x) @ right(weight).t()
    file = onnx_file(module.eval(), Plan(), x[:1], 21).model
    in_float = saturating and signed and bits < 8  # signed bytes that are clipped, ONNX Runtime leaves alone
    assert [product.operator for product in products(file)] == ([] if in_float else ["MatMulIntegerToFloat"])
    wrong = saturating and bits == 8 and caution() is not None  # 5 bits by 8 stay within 16
    assert torch.equal(executed(file, x), expected) is not wrong


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 7])
def test_a_file_that_chooses_is_exact_in_both_forms(bits):
    left, right = activation(8, False), UniformQuantizer(torch.tensor(0.5), None, bits, True)
    linear = nn.Linear(32, 4)
    linear.weight.data = torch.full((4, 32), right.high * 0.5) * torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None]
    decisions = {"input": decision(left), "weight": decision(right, SiteKind.LINEAR_WEIGHT)}
    x = torch.full((2, 3, 32), 1e3) * torch.tensor([1.0, -1.0])[:, None, None]
    file = exported(Integers((8,)).operation(linear, decisions), x)
    expected = (left(x) @ right(linear.weight).t() + linear.bias).detach()
    torch.testing.assert_close(executed(file, x), expected, rtol=1e-6, atol=0)
    assert any(node.op_type == "If" for node in file.graph.node) == (bits == 8)
    if bits == 8:
        (product,) = products(unsigned(file))
        assert product.types == ("UINT8", "UINT8")
        assert torch.equal(executed(unsigned(file), x), executed(file, x))
    (product,) = products(file)
    assert product.operator == "MatMulIntegerToFloat"
    assert not product.saturates or caution() is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy_run(tmp_path_factory.mktemp("runs") / "int8")


@pytest.mark.slow
def test_a_qdq_file_has_no_product_that_saturates_unless_it_is_saturating(folder):
    planned = load_planned(folder, toy_registry())
    exact, asked = (products(qdq_file(planned, saturating).model) for saturating in (False, True))
    assert len(exact) >= 10
    assert Counter(product.types for product in exact) == {("UINT8", "UINT8"): len(exact)}
    assert sum(product.saturates for product in asked) >= 8


@pytest.mark.slow
def test_an_integer_file_chooses_signed_bytes_only_if_they_do_not_saturate(folder):
    planned = load_planned(folder, toy_registry())
    file = integer_file(planned).model
    onnx.checker.check_model(file, full_check=True)
    here, elsewhere = products(file), products(unsigned(file))
    assert len(here) == len(elsewhere) == len(products(integer_file(planned, saturating=True).model))
    assert Counter(product.types for product in elsewhere) == {("UINT8", "UINT8"): len(elsewhere)}
    assert any(product.saturates for product in here) == (caution() is None)
    images = toy_images(6)
    assert torch.equal(executed(file, images), executed(unsigned(file), images))


@pytest.mark.slow
def test_weights_of_fewer_bits_stay_signed_since_no_processor_saturates(tmp_path):
    found = products(integer_file(load_planned(toy_run(tmp_path / "w7", weights=7), toy_registry())).model)
    signed = [product for product in found if product.types == ("UINT8", "INT8")]
    assert sum(not product.saturates for product in signed) == 14  # the others, of attention, have no weight
    assert len(found) == 18


@pytest.mark.slow
def test_a_saturating_file_states_it_and_is_refused_if_it_saturates_here(folder, tmp_path):
    target = tmp_path / "fast.onnx"
    if caution() is not None:
        with pytest.raises(ParityError, match="no VNNI"):
            export_run(folder, "onnx-integer", target, images=4, saturating=True, registry=toy_registry())
        assert not target.exists()
        return
    found = export_run(folder, "onnx-integer", target, images=4, saturating=True, registry=toy_registry())
    assert found.warnings == [f"the file multiplies {SATURATING}"]
    (said,) = (entry.value for entry in onnx.load(target).metadata_props if entry.key == "qplug.products")
    assert said == SATURATING


def test_formats_without_bytes_refuse_the_request(tmp_path):
    with pytest.raises(InputError, match="expected a format with products of 8-bit integers, received onnx-qonnx"):
        export_run(tmp_path, "onnx-qonnx", tmp_path / "model.onnx", saturating=True)


X86 = {"cpu_name": "Xeon", "architecture": "x86_64", "avx2": True, "avx512_f": True}


@pytest.mark.parametrize(
    ("known", "warned"),
    [
        (X86, True),
        (X86 | {"avx512_vnni": True}, False),
        (X86 | {"avx_vnni": True}, False),
        ({"cpu_name": "Neoverse", "architecture": "arm64"}, False),
    ],
)
def test_a_processor_without_vnni_has_a_caution(known, warned, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    said = caution()
    assert (said is not None) == warned
    assert said is None or said.startswith("Xeon has no VNNI: ONNX Runtime adds products of unsigned and signed bytes")


def test_a_processor_has_name_and_architecture():
    found = processor()
    assert list(found) == ["name", "architecture", "instructions"]
    assert found["name"]
    assert found["architecture"]
