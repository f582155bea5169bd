"""The contract of quantizers: values, gradients, and both ways through JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from qplug.quantization.quantizers import Quantizer


def check_quantizer(quantizer: Quantizer, x: Tensor) -> None:
    """Assert that ``quantizer`` keeps its contract on ``x`` (any shape that its scales broadcast with, float32)."""
    what = f"{type(quantizer).__name__} ({quantizer.describe()})"
    before = x.clone()
    out = quantizer(x)
    assert torch.equal(x, before), f"{what}: forward writes to its input"
    assert out.shape == x.shape, f"{what}: forward makes {tuple(out.shape)} of {tuple(x.shape)}"
    assert out.dtype == x.dtype, f"{what}: forward makes {out.dtype} of {x.dtype}"
    assert bool(out.isfinite().all()), f"{what}: forward returns values that are not finite"
    inferred = quantizer.infer(x)
    assert torch.equal(x, before), f"{what}: infer writes to its input"
    assert torch.equal(inferred, out), f"{what}: infer and forward differ"
    assert quantizer.storage_bits(tuple(x.shape)) >= x.numel(), f"{what}: storage_bits is below one bit an element"
    _check_serialization(quantizer, x, out, what)
    _check_gradient(quantizer, x, out, what)
    _check_codes(quantizer, x, inferred, what)
    _check_scaled(quantizer, x, inferred, what)


def check_shape(quantizer: Quantizer, x: Tensor, where: str) -> None:
    """Assert that the tensors of ``quantizer`` broadcast with ``x``, naming ``where`` if they do not."""
    scales = ", ".join(f"{name} {tuple(buffer.shape)}" for name, buffer in quantizer.named_buffers()) or "none"
    try:
        shape = tuple(quantizer.infer(x).shape)
    except RuntimeError as error:
        message = f"{where}: the quantizer's tensors ({scales}) do not broadcast with {tuple(x.shape)}: {error}"
        raise AssertionError(message) from error
    assert shape == tuple(x.shape), f"{where}: the quantizer ({scales}) makes {shape} of {tuple(x.shape)}"


def _check_serialization(quantizer: Quantizer, x: Tensor, out: Tensor, what: str) -> None:
    data = quantizer.to_dict()
    assert data.get("kind") == quantizer.kind, f"{what}: to_dict lacks 'kind': {quantizer.kind!r}"
    text = json.dumps(data, allow_nan=False)
    again = type(quantizer).from_dict(json.loads(text))
    assert again.bits == quantizer.bits, (
        f"{what}: from_dict(to_dict()) has {again.bits} bits instead of {quantizer.bits}"
    )
    assert json.dumps(again.to_dict()) == text, f"{what}: from_dict(to_dict()) describes itself differently"
    assert torch.equal(again(x), out), f"{what}: from_dict(to_dict()) quantizes differently"


def _check_gradient(quantizer: Quantizer, x: Tensor, out: Tensor, what: str) -> None:
    leaf = x.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        traced = quantizer(leaf)
        assert traced.requires_grad, f"{what}: no gradient passes (estimate it straight-through)"
        traced.sum().backward()
    # straight-through estimators add and subtract x, which may cost the last bits
    assert torch.allclose(traced.detach(), out, rtol=1e-4, atol=1e-6), (
        f"{what}: other values where a gradient is wanted"
    )
    assert leaf.grad is not None
    assert bool(leaf.grad.isfinite().all()), f"{what}: the gradient is not finite"


def _check_codes(quantizer: Quantizer, x: Tensor, inferred: Tensor, what: str) -> None:
    try:
        codes = quantizer.encode(x)
    except NotImplementedError:
        return
    assert codes.dtype == torch.int32, f"{what}: encode makes {codes.dtype}, not int32"
    assert codes.shape == x.shape, f"{what}: encode makes {tuple(codes.shape)} of {tuple(x.shape)}"
    inside = bool(((codes >= 0) & (codes < 1 << quantizer.bits)).all())
    assert inside, f"{what}: encode makes codes outside of 0 … 2^{quantizer.bits} − 1"
    assert torch.equal(quantizer.decode(codes), inferred), f"{what}: decode(encode(x)) and infer(x) differ"


def _check_scaled(quantizer: Quantizer, x: Tensor, inferred: Tensor, what: str) -> None:
    try:
        twice = quantizer.scaled(2.0)
    except NotImplementedError:
        return
    assert type(twice) is type(quantizer), f"{what}: scaled makes a {type(twice).__name__}"
    assert torch.equal(twice.infer(2.0 * x), 2.0 * inferred), f"{what}: scaled(2) does not quantize 2·x to 2·x̂"


class QuantizerContract:
    """Subclass it in a plugin's tests, and set ``quantizers`` to instances with a scale for the whole tensor."""

    quantizers: ClassVar[Sequence[Quantizer]] = ()

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """One test for each quantizer."""
        if "quantizer" in metafunc.fixturenames:
            metafunc.parametrize("quantizer", self.quantizers, ids=lambda quantizer: quantizer.describe())

    def test_contract(self, quantizer: Quantizer) -> None:
        """On positive and negative values inside and outside the range, and on an empty tensor."""
        x = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(0)) * 10.0
        check_quantizer(quantizer, x)
        assert quantizer(x[:0]).shape == (0, 8, 16)

    def test_zero_maps_to_zero(self, quantizer: Quantizer) -> None:
        """What a model pads or masks with must stay as it is."""
        assert torch.equal(quantizer(torch.zeros(3)), torch.zeros(3))
