"""A new export format or runtime is one file and one row of a table: export, help, bench and documentation read it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from export_toys import toy_run

import qplug
from qplug import InputError
from qplug.cli import main
from qplug.export import requirements
from qplug.export.formats.fallback import FloatWeight, traced
from qplug.export.formats.lowering import Format
from qplug.export.formats.table import FORMATS, ExportFormat, described, format_of, timed, with_integer_products
from qplug.export.formats.torch_program import TorchFile, torch_program
from qplug.export.runtimes.table import RUNTIMES, ExportRuntime
from qplug.export.runtimes.torch_runtime import TorchRuntime, open_file
from qplug.testing import toy_registry

DOCS = Path(__file__).parents[2] / "docs"

# a format: this is all of its file


class Floats(Format):
    """Every quantizer by its own operators, and weights as their quantized values in float32."""

    def activation(self, decision, transposed):
        return traced(decision.quantizer, transposed)

    def weight(self, decision, weight, transposed, beside):
        values = decision.quantizer.infer(weight)
        return FloatWeight(values.t() if transposed else values)


def floats_file(planned) -> TorchFile:
    return torch_program(planned, Floats())


FLOATS = ExportFormat(
    "torch-floats", ".floats.pt2", "a program with weights in float32", f"{__name__}:floats_file", runtime="counting"
)

# a runtime: this is all of its file


class Counting(TorchRuntime):
    """torch, which counts the images that it runs."""

    opened: list[Counting] = []  # noqa: RUF012

    def __init__(self, program, calls):
        super().__init__(program, calls)
        self.images = 0
        self.opened.append(self)

    def logits(self, x):
        self.images += len(x)
        return super().logits(x)


def open_counting(file) -> Counting:
    return Counting(file.model, file.calls)


COUNTING = ExportRuntime("Counting torch", f"{__name__}:open_counting")


@pytest.fixture
def rows(monkeypatch):
    """One row of each table."""
    monkeypatch.setitem(FORMATS, FLOATS.name, FLOATS)
    monkeypatch.setitem(RUNTIMES, "counting", COUNTING)


@pytest.mark.slow
def test_a_format_and_a_runtime_of_one_row_each_export_and_prove_parity(rows, tmp_path, capsys):
    run = toy_run(tmp_path / "run")
    result = qplug.export_run(run, "torch-floats", images=4, registry=toy_registry())
    assert result.path == tmp_path / "run.floats.pt2"
    assert result.parity.first_wrong is None
    assert result.parity.free.norm < 1e-6
    assert len(result.warnings) == 10
    assert result.warnings[0] == "the file holds patch_embed.proj.weight in float32: its quantizer has no codes"
    assert Counting.opened.pop().images == 1 + 4
    weights = [v for v in torch.export.load(result.path).state_dict.values() if v.dim() == 2 and min(v.shape) > 1]
    assert {weight.dtype for weight in weights} == {torch.float32}
    with pytest.raises(SystemExit) as end:
        main(["export", str(tmp_path / "no"), "--format", "torch-float"])
    assert end.value.code == 2
    assert "did you mean 'torch-floats'" in capsys.readouterr().err


def test_the_command_line_lists_a_format_of_one_row():
    code = (
        "from qplug.export.formats import table\n"
        "table.FORMATS['toy'] = table.ExportFormat('toy', '.toy', 'a toy', 'm:f', runtime='torch', timed=True)\n"
        "from qplug.cli import main\n"
        "main([{!r}, '--help'])\n"
    )
    for command, text in (("export", "toy: a toy"), ("bench", "integer, toy")):
        done = subprocess.run([sys.executable, "-c", code.format(command)], capture_output=True, text=True, check=True)
        assert text in " ".join(done.stdout.replace("│", " ").split())


def test_every_row_is_complete():
    assert list(FORMATS) == [row.name for row in FORMATS.values()]
    assert len({row.suffix for row in FORMATS.values()}) == len(FORMATS)
    for row in FORMATS.values():
        assert callable(requirements.imported(row.writer))
        assert callable(requirements.imported(RUNTIMES[row.runtime].opener))
        assert f"{row.name}: " in described()
    assert timed() == with_integer_products() == ["onnx-qdq", "onnx-integer"]


def test_an_unknown_name_gets_the_closest_one_that_is_allowed_here():
    with pytest.raises(InputError, match="expected one of onnx-qdq, onnx-integer, received 'onnx-qonnx'") as caught:
        format_of("onnx-qonnx", timed(), "--format")
    assert (caught.value.where, caught.value.fix) == ("--format", "did you mean 'onnx-qdq'?")


def test_the_documentation_lists_every_format():
    text = (DOCS / "deploying.md").read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith(("| `onnx", "| `torch"))]
    assert table == [
        f"| `{name}`{' (default)' if name == 'onnx-qdq' else ''} | {row.description} |" for name, row in FORMATS.items()
    ]


@pytest.mark.slow
def test_a_torch_program_is_exported_and_verified_without_onnx(tmp_path):
    run = toy_run(tmp_path / "run")
    code = (
        "import sys\n"
        "for name in ('onnx', 'onnx_ir', 'onnxruntime', 'onnxscript'):\n"
        "    sys.modules[name] = None\n"
        "import qplug\n"
        "from qplug.testing import toy_registry\n"
        f"result = qplug.export_run({str(run)!r}, 'torch', images=2, registry=toy_registry())\n"
        "assert result.parity.first_wrong is None\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert (tmp_path / "run.pt2").is_file()
    assert open_file is requirements.imported(RUNTIMES["torch"].opener)
