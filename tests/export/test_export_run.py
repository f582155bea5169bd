"""From run folders to files: their content, their execution and their metadata."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_toys import digits_run

import qplug
from qplug import __version__
from qplug.export.cpu import processor
from qplug.hooks.registry import backend_of, installed

pytestmark = pytest.mark.slow
RUNS = {
    "w8a8": ("", "{match: '*', bits: 8}"),
    "mixed": (
        "{use: mptq_vit.sq_b}, {use: mptq_vit.opt_m}, {use: tsptq_vit.v_2sf, kinds: [post_softmax]}, "
        "{use: tsptq_vit.o_2sf}, ",
        "{match: 'blocks.0*', bits: 3}, {match: 'blocks.1*', bits: 5}, {match: '*proj*', granularity: per_channel}, "
        "{match: query, granularity: per_head}, {match: 'head*', bits: 8}",
    ),
    "two": ("{use: mr_biq.binary_coding}, ", "{match: 'blocks.*.weight', bits: 2}"),
}


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
    return digits_run(tmp_path_factory.mktemp("run") / request.param, *RUNS[request.param])


@pytest.fixture(scope="module")
def exported(run):
    """The run's file in ONNX's own operators."""
    return qplug.export_run(run, images=8)


def simulated(run, x: torch.Tensor) -> torch.Tensor:
    model = qplug.load_quantized(run)
    with backend_of("brevitas", installed()).inference(model):
        logits: torch.Tensor = model(x)
    return logits


def pixels(batch: int) -> torch.Tensor:
    return torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(batch))


def metadata(path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def runs_as_simulated(result, run) -> None:
    """Checked by onnx, run by ONNX Runtime with two sizes of batch, and agreeing."""
    assert result.parity.first_wrong is None
    assert result.parity.images == 8
    assert result.parity.batches == [1, 4]
    assert result.parity.agreeing == 8
    assert result.warnings == []
    content = result.path.read_bytes()
    assert len(content) == result.size
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        found = session.run(None, {"input": pixels(batch).numpy()})[0]
        expected = simulated(run, pixels(batch)).numpy()
        assert found.shape == (batch, 10)
        assert np.linalg.norm(found - expected) <= 2e-2 * np.linalg.norm(expected)  # a tie may fall the other way


def test_onnx_runtime_computes_the_simulation(exported, run):
    runs_as_simulated(exported, run)


def test_it_does_so_from_qonnxs_operators_too(run, tmp_path):
    result = qplug.export_run(run, "onnx-qonnx", tmp_path / "model.onnx", images=8)
    runs_as_simulated(result, run)
    model = onnx.load(result.path)
    assert {(one.domain, one.name) for one in model.functions} == {("qonnx.custom_op.general", "Quant")}
    assert sum(node.domain == "qonnx.custom_op.general" for node in model.graph.node) > 10


def test_weights_are_integers_and_nothing_else_is_large(exported):
    """No float copy of a weight: only scales, biases, norms, embeddings and small tables are in float32."""
    graph = onnx.load(exported.path).graph
    codes = {one.name: one for one in graph.initializer if one.name.endswith(".weight.codes")}
    assert len(codes) == 18
    types = {onnx.TensorProto.DataType.Name(one.data_type) for one in codes.values()}
    assert types <= {"INT4", "UINT4", "INT8", "UINT8", "INT2", "UINT2"}
    plan = {d["site"]: d["bits"] for d in json.loads(metadata(exported.path)["qplug.plan"])}
    for name, one in codes.items():
        bits = plan[name.removesuffix(".codes")]
        assert len(one.raw_data) <= np.prod(one.dims) * next(w for w in (2, 4, 8) if w >= bits) / 8 + 1
    largest = max(np.prod(one.dims) for one in graph.initializer if one.data_type == onnx.TensorProto.FLOAT)
    assert largest < 64 * 64  # the smallest weight of a block; 2,096 for tables of regions


def test_metadata_describe_the_file(exported, run):
    said = metadata(exported.path)
    assert said["qplug.version"] == __version__
    assert said["qplug.format"] == "onnx-qdq"
    how = json.loads(said["qplug.preprocessing"])
    assert how == {
        "kind": "Preprocessing",
        "input_size": [1, 8, 8],
        "mean": [0.305],
        "std": [0.376],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    lock = json.loads((run / "lock.json").read_text())
    assert json.loads(said["qplug.run"])["model"] == lock["hashes"]["model"]
    plan = json.loads((run / "plan.json").read_text())
    assert [d["site"] for d in json.loads(said["qplug.plan"])] == [d["site"]["name"] for d in plan["decisions"]]
    parity = json.loads(said["qplug.parity"])
    assert parity["images"] == 8
    assert parity["processor"] == processor()
    operations = json.loads(said["qplug.operations"])
    assert operations[0] == {"operation": "patch_embed.proj", "inputs": ["input"], "output": "patch_embed.proj.output"}


def test_a_torch_program_needs_torch_alone_and_no_pickle(run, tmp_path):
    result = qplug.export_run(run, "torch", tmp_path / "model.pt2", images=4)
    assert result.parity.free.norm == 0.0
    with zipfile.ZipFile(result.path) as archive:
        held = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    assert held["data/sample_inputs/model.pt"] == b""
    assert not [name for name, content in held.items() if name.endswith(".pkl") or content.startswith(b"PK")]
    assert 'use_pickle": true' not in held["data/weights/model_weights_config.json"].decode()
    assert json.loads(held["extra/qplug.json"])["qplug.format"] == "torch"
    state = torch.export.load(result.path).state_dict.values()
    assert not any(held.is_floating_point() and held.dim() == 4 and held[0].numel() > 1 for held in state)  # kernels
    torch.save(pixels(3), tmp_path / "x.pt")
    code = (
        "import sys, torch\n"
        "sys.modules['qplug'] = None\n"
        f"model = torch.export.load({str(result.path)!r}).module()\n"
        f"torch.save(model(torch.load({str(tmp_path / 'x.pt')!r})), {str(tmp_path / 'y.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert torch.equal(torch.load(tmp_path / "y.pt"), simulated(run, pixels(3)))


def test_a_file_without_comparison_states_it_and_is_otherwise_the_same(exported, run, tmp_path):
    """Byte for byte, except for the result of the comparison."""
    result = qplug.export_run(run, out=tmp_path / "model.onnx", verify=False)
    assert result.parity is None
    assert result.warnings == ["the file was not compared with the simulation"]
    unseen, seen = onnx.load(result.path), onnx.load(exported.path)
    assert metadata(result.path)["qplug.parity"] == "not verified: exported with --no-verify"
    assert unseen.metadata_props.pop().key == seen.metadata_props.pop().key == "qplug.parity"
    assert unseen.SerializeToString(deterministic=True) == seen.SerializeToString(deterministic=True)
