"""Small run folders to export, and one quantizer alone in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor, nn

import qplug
from qplug.core.types import QuantSpec, Site, SiteKind
from qplug.export.formats.graph import build
from qplug.hooks.registry import Registry
from qplug.quantization.plan import Decision
from qplug.quantization.quantizers import Quantizer
from qplug.testing import toy_registry

DIGITS = """
version: 1
model: {source: zoo, name: vit_digits}
data:
  calibration: {source: digits, split: train, images: 16}
  evaluation: {source: digits, split: test, images: 24}
quantize:
  weights: {bits: 4}
  activations: {bits: 8, symmetric: false}
  overrides: [OVERRIDES]
techniques: [STEPS{use: baseline.minmax}]
"""


def digits_run(out: Path, steps: str = "", overrides: str = "", text: str = DIGITS) -> Path:
    """A run folder of the embedded model."""
    path = out.with_suffix(".yaml")
    path.write_text(text.replace("OVERRIDES", overrides).replace("STEPS", steps))
    qplug.run(qplug.load_recipe(path), out=out)
    return out


def toy_run(
    out: Path,
    steps: str = "{use: baseline.minmax}",
    registry: Registry | None = None,
    bits: int = 8,
    weights: int | None = None,
) -> Path:
    """A run folder of ``toy_vit``; ``weights`` have as many bits as activations unless given."""
    registry = registry or toy_registry()
    data = "{calibration: {source: toy, split: train}, evaluation: {source: toy, split: test, images: 6}}"
    quantize = f"{{weights: {{bits: {weights or bits}}}, activations: {{bits: {bits}, symmetric: false}}}}"
    path = out.with_suffix(".yaml")
    path.write_text(f"version: 1\nmodel: {{source: toy}}\ndata: {data}\nquantize: {quantize}\ntechniques: [{steps}]\n")
    qplug.run(qplug.load_recipe(path, registry=registry), out=out, registry=registry)
    return out


def decision(quantizer: Quantizer, kind: SiteKind = SiteKind.LINEAR_INPUT, shape: tuple[int, ...] = (6, 8)) -> Decision:
    """One of a plan."""
    role = "weight" if kind.is_weight else "input"
    return Decision(
        Site(f"layer.{role}", kind, "layer", role, shape), QuantSpec(quantizer.bits), quantizer, "t", "", ""
    )


class _All(nn.Module):
    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.each = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([-layer(x) for layer in self.each], 1)  # a bare Unsqueeze is what ONNX Runtime fails on


def in_onnx_runtime(modules: Sequence[nn.Module], x: Tensor, opset: int = 25) -> list[Tensor]:
    """What ONNX Runtime computes of each module, all in one graph; outputs are all of one shape."""
    from qplug.export.formats.qonnx import definition

    model, _ = build(_All(modules).eval(), [], x[:1], opset)
    function = definition(opset)
    model.functions[function.identifier()] = function
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"input": x.numpy()})[0]
    return list((-torch.from_numpy(found)).unbind(1))
