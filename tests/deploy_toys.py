"""The deployment recipe on the embedded model and data, and files in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from qplug import load_recipe, run
from qplug.export.onnx_file import onnx_file
from qplug.export.speed import session
from qplug.export.trace import INPUT, LOGITS
from qplug.plan import Plan

RECIPE = Path(__file__).parents[1] / "recipes" / "deploy_int8.yaml"
DIGITS = (
    "model={source: zoo, name: vit_digits}",
    "data.calibration={source: digits, split: train, images: 16}",
    "data.evaluation={source: digits, split: test, images: 100}",
    "quantize.overrides=[]",
)


def digits_run(folder: Path, *more: str) -> Path:
    """A run of the recipe on the digits, in ``folder``."""
    run(load_recipe(RECIPE, [*DIGITS, *more]), out=folder)
    return folder


def exported(module: nn.Module, x: Tensor) -> onnx.ModelProto:
    """A lowered module as a file."""
    return onnx_file(module.eval(), Plan(), x[:1], 20).model


def scaled(model: onnx.ModelProto, node: str, position: int, factor: float) -> onnx.ModelProto:
    """A copy whose ``node`` has a constant input of its own at ``position``, ``factor`` times as large."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    (found,) = (one for one in changed.graph.node if one.name == node)
    (shared,) = (one for one in changed.graph.initializer if one.name == found.input[position])
    found.input[position] = f"own.{node}.{position}"
    values = numpy_helper.to_array(shared)
    own = numpy_helper.from_array((values * factor).astype(values.dtype), found.input[position])
    changed.graph.initializer.append(own)
    return changed


def executed(model: onnx.ModelProto, x: Tensor) -> Tensor:
    """What ONNX Runtime gives."""
    return torch.from_numpy(session(model, 1).run([LOGITS], {INPUT: x.numpy()})[0])
