"""Who is warned that products of 8-bit integers may saturate."""

from __future__ import annotations

import pytest
import torch

from qplug.export.processor import caution, processor

X86 = {"cpu_name": "Xeon", "architecture": "x86_64", "avx2": True, "avx512_f": True}


@pytest.mark.parametrize(
    ("known", "format", "warned"),
    [
        (X86, "onnx-integer", True),
        (X86, "onnx-qdq", True),
        (X86, "torch", False),
        (X86 | {"avx512_vnni": True}, "onnx-integer", False),
        (X86 | {"avx_vnni": True}, "onnx-integer", False),
        ({"cpu_name": "Neoverse", "architecture": "arm64"}, "onnx-integer", False),
    ],
)
def test_who_adds_in_16_bits_is_warned(known, format, warned, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    said = caution(format)
    assert (said is not None) == warned
    assert said is None or said.startswith("Xeon has no VNNI: ONNX Runtime adds products of 8-bit integers in 16 bits")


def test_a_processor_says_what_it_is():
    found = processor()
    assert list(found) == ["name", "architecture", "instructions"]
    assert found["name"]
    assert found["architecture"]
