"""The commands: exit codes, output streams, and light imports."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import types
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from cli_toys import call
from paths import ROOT
from recipe_toys import GOOD, registry

from qplug import __version__
from qplug.cli import main
from qplug.core.errors import InputError, QplugError
from qplug.core.types import Event, Site, SiteKind

METRICS: dict[str, Any] = {
    "float.top1": 0.98,
    "quantized.top1": 0.96,
    "quantized.agreement": 0.97,
    "quantized.logit_sqnr_db": float("inf"),
    "size_mb": 0.1,
    "float.size_mb": 0.7,
    "bops_g": 0.0468,
    "bops_convention": "full",
    "accounting.q-mlp.size_mb": 0.08,
    "accounting.q-mlp.float.size_mb": 0.7,
    "accounting.q-mlp.bops_g": 0.09,
    "bits.weights_mean": 4.0,
    "bits.activations_mean": 3.9,
    "coverage.macs": 0.9,
    "images.calibration": 8,
    "images.evaluation": 16,
    "float.forward_seconds": 0.1,
    "seconds.statistics": 0.25,
    "seconds.total": 1.5,
    "peak_memory_mb": 500.0,
    "toy.extra": 3.0,
}


@dataclasses.dataclass
class Quantizer:
    bits: int
    kind: str = "uniform"


@dataclasses.dataclass
class FakePlan:
    total_macs: int = 1000
    float_sites: dict[str, str] = dataclasses.field(default_factory=lambda: {"stem.weight": "override"})
    unknown: dict[str, str] = dataclasses.field(default_factory=dict)
    changes: tuple[Any, ...] = (types.SimpleNamespace(technique="toy.split", reason="eps"),) * 3

    def __iter__(self) -> Any:
        for bits in (4, 6):
            site = Site(f"b{bits}.weight", SiteKind.LINEAR_WEIGHT, f"b{bits}", "weight", (2, 2), 4)
            yield types.SimpleNamespace(site=site, quantizer=Quantizer(bits), technique="toy.ranges", undone="")


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A pipeline that does nothing but say what it was asked, in the place of the real one."""

    def run(recipe: Any, *, out: Path, device: str, observers: list[Any], cache: object) -> Any:
        fake.asked = {"recipe": recipe, "out": out, "device": device}
        for phase in ("start", "end"):
            for observer in observers:
                observer.qplug_observe(Event("statistics", phase))
        return types.SimpleNamespace(
            metrics=METRICS, plan=FakePlan(), warnings=["a warning"], folder=out, float_macs={"head": 100}
        )

    def inspect(source: Any, *, weights: bool) -> Any:
        fake.asked = {"source": source}
        sites = [Site("a.weight", SiteKind.LINEAR_WEIGHT, "a", "weight", (2, 3), 6)]
        norms = {"n": "is called 2 times", "m": "is in training mode", "o": "is in training mode"}
        left = {"float_macs": {"mystery": 6}, "unknown": {}, "bypassed": {}, "float_reasons": {}, "float_norms": norms}
        costs = {"W8A8": {"size_mb": 1.0, "bops_g": 200.0, "float.size_mb": 4.0, "float.bops_g": 32.0}}
        more = {**left, "costs": {"full": costs, "q-mlp": costs}, "notes": []}
        return types.SimpleNamespace(sites=sites, total_macs=12, coverage=0.5, **more)

    fake: Any = types.ModuleType("qplug.pipeline.run")
    fake.run, fake.inspect = run, inspect
    monkeypatch.setitem(sys.modules, "qplug.pipeline.run", fake)
    monkeypatch.setitem(sys.modules, "qplug.analysis.inspect", fake)
    return fake


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("qplug.hooks.registry.installed", registry)
    monkeypatch.setattr("qplug.recipe.load.installed", registry)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(GOOD.replace("bits: 4}", "bits: 99}"))
    return tmp_path


Output = pytest.CaptureFixture[str]


def test_run_shows_a_summary(pipeline: Any, capsys: Output) -> None:
    assert call("run", "good.yaml", "--out", "here", "--set", "seed=5") == 0
    assert pipeline.asked["recipe"].seed == 5
    assert pipeline.asked["out"] == Path("here")
    assert pipeline.asked["device"] == "cpu"
    text, errors = capsys.readouterr()
    for part in (
        "top-1, quantized      96.00 %",
        "logit SQNR            inf dB",
        "0.100 MB, 7.0 times less than float (0.700 MB)",
        "bit operations        0.047 G\n",
        "counted by            full: MACs × bits × bits, attention's matmuls included",
        "weights 4.00, activations 3.90",
        "took 1.5 s\n",
        "statistics     0.25\n",
        "linear_weight      2   4–6  uniform    toy.ranges",
        "3 × toy.split: eps",
        "protocol: linear_weight 4–6 bits; inputs of Softmax and LayerNorm in float; in float: stem.weight; ",
        "10.00 % of the MACs in float: head",
        "toy.extra",
        "run folder            here",
        "warning: a warning",
    ):
        assert part in text
    assert "\x1b" not in text
    assert "─" not in text
    assert "accounting" not in text
    assert errors == ""


def test_run_counts_by_another_convention(pipeline: Any, capsys: Output) -> None:
    assert call("run", "good.yaml", "--out", "here", "--accounting", "q-mlp") == 0
    text = capsys.readouterr().out
    assert "0.080 MB, 8.8 times less than float (0.700 MB)" in text
    assert "bit operations        0.090 G\n" in text
    assert "counted by            q-mlp: 2 × MACs × bits × bits, no matmuls of attention" in text
    for command in (["run", "good.yaml"], ["inspect", "vit_digits"], ["compare", "runs"]):
        assert call(*command, "--accounting", "qmlp") == 2
        assert "--accounting: no convention is called 'qmlp'\n  → did you mean 'q-mlp'?" in capsys.readouterr().err


def test_run_separates_the_time_that_the_cache_saved(pipeline: Any, capsys: Output) -> None:
    saved = {"cache.seconds_saved": 147.4, "cache.seconds_saved.statistics": 147.4}
    cached = {**METRICS, "seconds.total": 184.2, **saved}
    original = pipeline.run

    def run(*arguments: Any, **options: Any) -> Any:
        return types.SimpleNamespace(**{**vars(original(*arguments, **options)), "metrics": cached})

    pipeline.run = run
    assert call("run", "good.yaml", "--out", "here") == 0
    text = capsys.readouterr().out
    assert "took 184 s (147 s saved by the cache)" in text
    assert [line.split() for line in text.splitlines() if line.startswith(("statistics", "total"))] == [
        ["statistics", "0.25", "147.40"],
        ["total", "184.20", "147.40"],
    ]


def test_run_names_the_folder_after_recipe_and_time(pipeline: Any, place: Path) -> None:
    assert call("run", "good.yaml", "--json") == 0
    out = pipeline.asked["out"]
    assert out.parent == Path("runs")
    assert out.name.startswith("good-20")


def test_run_for_machines(pipeline: Any, capsys: Output) -> None:
    assert call("run", "good.yaml", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["status"] == "done"
    assert value["metrics"]["quantized.logit_sqnr_db"] is None
    assert value["decisions"][0]["bits_max"] == 6
    assert value["warnings"] == ["a warning"]


def test_run_refuses_before_any_work(pipeline: Any, place: Path, capsys: Output) -> None:
    (place / "there").mkdir()
    assert call("run", "good.yaml", "--out", "there") == 2
    assert "there: this run folder exists" in capsys.readouterr().err
    assert call("run", "bad.yaml") == 2
    assert call("run", "none.yaml") == 2
    assert not hasattr(pipeline, "asked")
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("truncated", where="a.png"), 2, "error: a.png: truncated"),
        (QplugError("disk full"), 1, "error: disk full"),
        (
            RuntimeError("shapes\n  differ"),
            1,
            "unexpected error: RuntimeError: shapes differ\n  → 'qplug --traceback …'",
        ),
        (KeyboardInterrupt(), 130, "interrupted; nothing was written"),
    ],
)
def test_exit_codes(pipeline: Any, capsys: Output, error: BaseException, code: int, message: str) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    pipeline.run = fail
    assert call("run", "good.yaml") == code
    text, errors = capsys.readouterr()
    assert text == ""
    assert message in errors


def test_traceback_on_request(pipeline: Any) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("deep inside")

    pipeline.run = fail
    with pytest.raises(ValueError, match="deep inside"):
        main(["--traceback", "run", "good.yaml"])


def test_errors_for_machines(capsys: Output) -> None:
    assert call("run", "bad.yaml", "--json") == 2
    value = json.loads(capsys.readouterr().out)
    assert (value["status"], value["exit_code"]) == ("error", 2)
    assert value["problems"][0]["where"] == "bad.yaml:8:19"


def test_validate(capsys: Output) -> None:
    assert call("validate", "good.yaml") == 0
    assert capsys.readouterr().out == "good.yaml: ok (toy.split, toy.ranges)\n"
    assert call("validate", "good.yaml", "bad.yaml", "none.yaml") == 2
    text, errors = capsys.readouterr()
    assert "good.yaml: ok" in text
    assert "bad.yaml:8:19: quantize.weights.bits: expected at most 16, received 99" in errors
    assert "none.yaml: there is no such file" in errors
    assert len(errors.splitlines()) < 24
    assert call("validate", "bad.yaml", "--set", "quantize.weights.bits=4") == 0
    assert call("validate", "good.yaml", "bad.yaml", "--json") == 2
    value = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert [report["status"] for report in value["recipes"]] == ["ok", "error"]
    assert value["recipes"][0]["resolved"]["seed"] == 0


def test_validate_takes_sweeps(capsys: Output) -> None:
    row = "{recipe: good.yaml, set: {quantize.weights.bits: %d}}"
    sweep = "version: 1\ntitle: two widths\nseeds: [0, 1, 2]\nrecipes:\n  - %s\n  - %s\n"
    Path("sweep.yaml").write_text(sweep % (row % 4, row % 6))
    assert call("validate", "sweep.yaml", "good.yaml") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "sweep.yaml: ok (a sweep of 6 runs; run it by qplug compare)"
    assert second == "good.yaml: ok (toy.split, toy.ranges)"
    assert call("validate", "sweep.yaml", "--json") == 0
    (report,) = json.loads(capsys.readouterr().out)["recipes"]
    assert [run["quantize"]["weights"]["bits"] for run in report["runs"]] == [4, 4, 4, 6, 6, 6]
    assert call("run", "sweep.yaml") == 2
    errors = capsys.readouterr().err
    assert "sweep.yaml: expected a recipe, received a sweep" in errors
    assert "→ qplug compare sweep.yaml" in errors
    Path("sweep.yaml").write_text(sweep % (row % 4, row % 99))
    assert call("validate", "sweep.yaml") == 2
    assert "sweep.yaml:6:54: quantize.weights.bits: expected at most 16, received 99" in capsys.readouterr().err


def test_plugins_and_techniques(capsys: Output) -> None:
    assert call("plugins") == 0
    assert "torn (qplug-torn 0.4): ModuleNotFoundError" in capsys.readouterr().out
    assert call("plugins", "--json") == 0
    assert json.loads(capsys.readouterr().out)["plugins"][1]["error"].startswith("ModuleNotFoundError")
    assert call("techniques") == 0
    assert "toy.ranges" in capsys.readouterr().out
    assert call("techniques", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["techniques"]) == 2
    assert call("techniques", "toy.ranges") == 0
    assert "per cent of the values kept" in capsys.readouterr().out
    assert call("techniques", "toy.ranges", "--json") == 0
    assert json.loads(capsys.readouterr().out)["parameters"][0]["name"] == "percentile"
    assert call("techniques", "toy.range") == 2
    assert "did you mean 'toy.ranges'?" in capsys.readouterr().err


def test_schema(capsys: Output) -> None:
    assert call("schema") == 0
    assert json.loads(capsys.readouterr().out)["properties"]["backend"]["enum"] == ["brevitas", "modelopt"]


@pytest.mark.parametrize(
    ("model", "source"),
    [
        ("vit_digits", {"source": "zoo", "name": "vit_digits"}),
        ("deit_tiny_patch16_224", {"source": "timm", "name": "deit_tiny_patch16_224"}),
        ("my.models:make", {"source": "import", "target": "my.models:make"}),
    ],
)
def test_inspect(pipeline: Any, capsys: Output, monkeypatch: pytest.MonkeyPatch, model: str, source: Any) -> None:
    from qplug.models.sources import ImportedModel, TimmModel, ZooModel

    toys = registry()
    toys.models = {found.name(): found for found in (TimmModel, ZooModel, ImportedModel)}
    monkeypatch.setattr("qplug.hooks.registry.installed", lambda: toys)
    assert call("inspect", model) == 0
    assert {key: getattr(pipeline.asked["source"].config, key) for key in source} == source
    text = capsys.readouterr().out
    assert "a.weight  linear_weight    2×3     6" in text
    assert "12 MACs for one image; 50.0 % of them can be quantized\nstays in float: mystery, 6 MACs" in text
    assert "stays in float: n, a BatchNorm that is called 2 times" in text
    assert "stay in float: 2 BatchNorms, each of which is in training mode: m, o" in text
    assert [line.split() for line in text.splitlines() if line[:1] == "W"] == [
        ["W32A32", "4.000", "32.000"],
        ["W8A8", "1.000", "200.0"],
    ]
    assert "full: MACs × bits × bits" in text
    assert call("inspect", model, "--json") == 0
    assert json.loads(capsys.readouterr().out)["sites"][0]["macs"] == 6


def test_inspect_without_sources_and_with_a_wrong_path(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    from qplug.models.sources import ImportedModel

    assert call("inspect", "vit_digits") == 2
    assert "the model source 'timm' is not installed" in capsys.readouterr().err
    toys = registry()
    toys.models["import"] = ImportedModel
    monkeypatch.setattr("qplug.hooks.registry.installed", lambda: toys)
    assert call("inspect", "a b:c") == 2
    assert "a b:c: target: " in capsys.readouterr().err


def test_zoo_train(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(name: str, out: Path, *, data: Path | None, epochs: int | None, seed: int, progress: Any) -> float:
        progress(1, 2)
        assert (name, out, data, epochs, seed) == ("vit_digits", Path("w.safetensors"), Path("d"), 3, 4)
        return 0.981

    module: Any = types.ModuleType("qplug.training.supervised.zoo")
    module.train = train
    monkeypatch.setitem(sys.modules, "qplug.training.supervised.zoo", module)
    assert (
        call("zoo", "train", "vit_digits", "--out", "w.safetensors", "--epochs", "3", "--seed", "4", "--data", "d") == 0
    )
    assert "vit_digits: 98.10 % top-1" in capsys.readouterr().out


def test_new_plugin(capsys: Output, place: Path) -> None:
    assert call("new-plugin", "qplug-sharp") == 0
    assert (place / "qplug-sharp" / "pyproject.toml").is_file()
    assert "pip install -e qplug-sharp" in capsys.readouterr().out
    assert call("new-plugin", "qplug-sharp") == 2


def test_usage(capsys: Output) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out == f"qplug {__version__}\n"
    assert call("--help") == 0
    commands = capsys.readouterr().out
    for name in ("run", "export", "validate", "plugins", "techniques", "schema", "inspect", "zoo", "new-plugin"):
        assert f"\n  {name} " in commands
    for wrong in (["run"], ["run", "good.yaml", "--nothing"], ["nothing"]):
        assert call(*wrong) == 2


HEAVY = ["torch", "timm", "brevitas", "modelopt", "numpy", "sklearn", "PIL", "scipy", "pandas", "datasets"]
HEAVY += ["onnx", "onnxruntime"]


def test_a_missing_gpu_is_no_warning_of_torch(capsys: Output) -> None:
    import logging

    assert call("techniques") == 0
    assert not logging.getLogger("torch.utils.cpp_extension").isEnabledFor(logging.WARNING)


@pytest.mark.parametrize("arguments", [["--help"], ["validate", "recipes/mptq_vit.yaml"], ["techniques"], ["plugins"]])
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print('heavy:', [m for m in {HEAVY} if m in sys.modules]))\n"
        f"from qplug.cli import main\nmain({arguments!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    if arguments[0] == "validate" and not entry_points(group="qplug"):
        pytest.skip("qplug is not installed, so that no technique is known")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("heavy: []")


STUCK = """
import sys, time, types
sys.path.insert(0, {tests!r})
import recipe_toys, qplug.hooks.registry, qplug.recipe.load
qplug.recipe.load.installed = recipe_toys.registry
from qplug.core.storage.run_folder import RunFolder
fake = types.ModuleType("qplug.pipeline.run")
def run(recipe, *, out, **_):
    with RunFolder(out, required=()) as folder:
        folder.write_text("metrics.json", "x")
        print("half", flush=True)
        time.sleep(600)
fake.run = run
sys.modules["qplug.pipeline.run"] = fake
from qplug.cli import main
main(["run", "good.yaml", "--out", "one"])
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
@pytest.mark.parametrize(
    ("name", "expected"),
    [("SIGTERM", (1, "stopped by a signal\n")), ("SIGINT", (130, "interrupted; nothing was written\n"))],
)
def test_a_signal_ends_a_run_cleanly(place: Path, name: str, expected: tuple[int, str]) -> None:
    command = [sys.executable, "-c", STUCK.format(tests=str(ROOT / "tests/support"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=place) as work:
        assert work.stderr is not None
        assert work.stderr.readline() == "half\n"  # code that is called prints there
        work.send_signal(getattr(signal, name))
        output, errors = work.communicate(timeout=300)
    assert (work.returncode, errors) == expected
    assert output == ""
    assert sorted(path.name for path in place.iterdir()) == ["bad.yaml", "good.yaml"]
