"""Exports that are refused, and their messages: before any work if the cause is known by then."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from typing import Literal

import pytest
import torch
from export_toys import toy_run
from pydantic import Field
from torch import Tensor, nn

import qplug
from qplug import Config, InputError, ParityError, Quantizer, QuantizerChoice, Technique, hookimpl
from qplug.cli import main
from qplug.core.types import Rewrite
from qplug.export.formats.qdq_file import qdq_file
from qplug.export.formats.table import FORMATS
from qplug.export.parity.verify import Compared, evaluation_batches
from qplug.export.runtimes.table import RUNTIMES
from qplug.hooks.registry import Plugin
from qplug.pipeline.load_run import load_planned
from qplug.testing import toy_registry

MINMAX = "{use: baseline.minmax}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return toy_run(tmp_path_factory.mktemp("toy") / "run")


def refused(folder, **options) -> InputError:
    with pytest.raises(InputError) as caught:
        qplug.export_run(folder, registry=options.pop("registry", None) or toy_registry(), **options)
    return caught.value


def test_a_missing_extra_names_the_command(run, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else found(name))
    error = refused(run, out=tmp_path / "model.onnx")
    assert error.what == "onnx-qdq needs packages that are not installed: onnx, onnx_ir, onnxscript, onnxruntime"
    assert error.fix == "pip install 'qplug[export]'"


def test_a_target_that_exists_or_cannot_be(run, tmp_path):
    target = tmp_path / "model.onnx"
    target.write_text("mine")
    error = refused(run, out=target)
    assert (error.what, error.where) == ("this file exists", str(target))
    assert "--out" in error.fix
    assert target.read_text() == "mine"
    assert "there is no such folder" in refused(run, out=tmp_path / "no" / "model.onnx").what


def test_by_default_the_file_lies_beside_the_run(run):
    run.with_name("run.onnx").write_text("mine")
    assert refused(run).where == str(run.with_name("run.onnx"))
    run.with_name("run.onnx").unlink()


def test_an_unknown_format(run):
    error = refused(run, format="tflite")
    assert error.what == "expected one of onnx-qdq, onnx-integer, onnx-qonnx, torch, received 'tflite'"
    assert "qplug export --help" in error.fix
    assert "did you mean 'onnx-qdq'" in refused(run, format="onnx-qqd").fix


@pytest.mark.parametrize("images", [0, -3])
def test_no_images_are_no_comparison(run, images, tmp_path):
    error = refused(run, images=images, out=tmp_path / "model.onnx")
    assert (error.what, error.where) == (f"expected at least 1 image to compare, received {images}", "images")


def test_the_given_number_of_images_is_compared(run):
    registry = toy_registry()
    sizes = [len(x) for x in evaluation_batches(load_planned(run, registry), Compared(5), registry)]
    assert sizes == [4, 1]


def failing(file):
    """The opener of a runtime that cannot execute any file."""
    raise RuntimeError("Non-zero status code\n returned")


@pytest.mark.slow
def test_a_runtime_that_fails_is_named_and_leaves_no_file(run, tmp_path, monkeypatch):
    monkeypatch.setitem(RUNTIMES, "onnxruntime", replace(RUNTIMES["onnxruntime"], opener=f"{__name__}:failing"))
    with pytest.raises(
        ParityError, match="ONNX Runtime cannot execute the file: RuntimeError: Non-zero status code ret"
    ) as caught:
        qplug.export_run(run, out=tmp_path / "model.onnx", registry=toy_registry(), images=2)
    assert caught.value.where == "onnx-qdq"
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_run_and_one_of_another_version(run, tmp_path):
    import shutil

    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    weights = damaged / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "is not the file that the run wrote" in refused(damaged, out=tmp_path / "a.onnx").what
    (damaged / "lock.json").write_text(json.dumps({"format": 99, "qplug": "9.0"}))
    error = refused(damaged, out=tmp_path / "a.onnx")
    assert "of format 5 was expected, received 99" in error.what
    assert "recipe.yaml --out NEW_FOLDER" in error.fix
    assert "no such run folder" in refused(tmp_path / "nowhere", out=tmp_path / "a.onnx").what
    assert not (tmp_path / "a.onnx").exists()


class Odd(Quantizer):
    """A quantizer with an operator that no format has."""

    kind = "odd"

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.0 * torch.linalg.matrix_exp(torch.zeros(2, 2)).sum() * x.sum().sign()

    def to_dict(self):
        return {"kind": self.kind, "bits": self.bits}

    @classmethod
    def from_dict(cls, data):
        return cls(data["bits"])


class Odder(Odd):
    """A quantizer that cannot be traced, because its operators depend on the values."""

    kind = "odder"

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.0 if float(x.sum()) > 1e9 else x + 0.0


def technique(make, weights: bool = False) -> type[Technique]:
    class Step(Technique):
        class Config(Config):
            use: Literal["trial.step"] = Field("trial.step", description="which technique this step is")

        @hookimpl
        def qplug_make_quantizer(self, site, spec, stats):
            return (
                QuantizerChoice(make())
                if site.name == ("head.weight" if weights else "blocks.1.mlp.fc2.input")
                else None
            )

    return Step


def trial(*, cls=None, step=None):
    registry = toy_registry(step)
    registry.quantizers = registry.quantizers | ({cls.kind: f"{__name__}:{cls.__name__}"} if cls else {})
    owner = Plugin("trial", "qplug-trial", "1.2.3", __name__)
    registry.owners = registry.owners | ({f"quantizer:{cls.kind}": owner} if cls else {})
    return registry


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "what"), [(Odd, "the operator aten"), (Odder, "something that cannot be traced")])
def test_a_quantizer_that_the_format_cannot_express_is_named(cls, what, tmp_path):
    registry = trial(cls=cls, step=technique(cls))
    run = toy_run(tmp_path / "run", f"{{use: trial.step}}, {MINMAX}", registry)
    error = refused(run, out=tmp_path / "model.onnx", registry=registry)
    assert error.what.startswith(f"onnx-qdq cannot express {what}")
    assert error.what.endswith(f"of quantizer '{cls.kind}' of trial (qplug-trial 1.2.3)")
    assert error.where == "blocks.1.mlp.fc2.input"
    assert "skip: true" in error.fix
    assert not (tmp_path / "model.onnx").exists()


class MatrixExp(nn.Softmax):
    """A Softmax with an operator that no format has."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 0.0 * torch.linalg.matrix_exp(input)


class Rewriting(Technique):
    """Replaces every Softmax by it."""

    class Config(Config):
        """Nothing."""

        use: Literal["trial.step"] = Field("trial.step", description="which technique this step is")

    @hookimpl
    def qplug_rewrite_module(self, name, module):
        return Rewrite(MatrixExp(-1), preserves=False) if type(module) is nn.Softmax else None


@pytest.mark.slow
def test_an_operator_of_the_model_is_named(tmp_path):
    registry = trial(step=Rewriting)
    run = toy_run(tmp_path / "run", f"{{use: trial.step}}, {MINMAX}", registry)
    error = refused(run, out=tmp_path / "model.onnx", registry=registry)
    assert error.what == "onnx-qdq cannot express the operator aten.linalg_matrix_exp, which the model itself computes"
    assert "adapter" in error.fix


@pytest.mark.slow
def test_a_weight_without_codes_is_in_float_with_a_warning(tmp_path):
    registry = trial(cls=Odd, step=technique(lambda: NoCodes(8), weights=True))
    registry.quantizers["no_codes"] = f"{__name__}:NoCodes"
    run = toy_run(tmp_path / "run", f"{{use: trial.step}}, {MINMAX}", registry)
    result = qplug.export_run(run, out=tmp_path / "model.onnx", registry=registry, images=2)
    assert result.warnings == ["the file holds head.weight in float32: its quantizer has no codes"]


class NoCodes(Odd):
    """Rounds to multiples of 1/64."""

    kind = "no_codes"

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x * 64.0) / 64.0


def wrong_scale(planned, saturating):
    """The writer of ``onnx-qdq``, its last scale 1 % too large."""
    file = qdq_file(planned, saturating)
    for tensor in file.model.graph.initializer:
        if tensor.name == "head.weight.scale":
            scales = torch.frombuffer(bytearray(tensor.raw_data), dtype=torch.float32)
            tensor.raw_data = (scales * 1.01).numpy().tobytes()
    return file


@pytest.mark.slow
def test_a_file_that_differs_is_not_written(run, tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "onnx-qdq", replace(FORMATS["onnx-qdq"], writer=f"{__name__}:wrong_scale"))
    with pytest.raises(ParityError, match="expected the simulation's output for the same operands") as caught:
        qplug.export_run(run, out=tmp_path / "model.onnx", registry=toy_registry(), images=2)
    assert caught.value.where.startswith("head (weight: uniform")
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []
    qplug.export_run(run, out=tmp_path / "model.onnx", registry=toy_registry(), verify=False)
    assert (tmp_path / "model.onnx").is_file()


def test_the_command_line_prints_the_same(tmp_path, capsys):
    for arguments, message in (
        (["export", str(tmp_path / "no")], "there is no such run folder"),
        (
            ["export", str(tmp_path / "no"), "--format", "tflite"],
            "expected one of onnx-qdq, onnx-integer, onnx-qonnx, torch",
        ),
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
        assert message in capsys.readouterr().err
