"""What ends a command from outside: closed and full streams, Ctrl-C, lack of memory, and code that calls sys.exit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from cli_toys import call
from paths import ROOT
from recipe_toys import GOOD, registry

from qplug.core.errors import PluginError, exits_named, out_of_memory

Output = pytest.CaptureFixture[str]
COMMAND = f"{sys.executable} -m qplug"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("qplug.hooks.registry.installed", registry)
    monkeypatch.setattr("qplug.recipe.load.installed", registry)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text(GOOD)
    return tmp_path


def pipeline(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    fake: Any = types.ModuleType("qplug.pipeline.run")
    fake.run = run
    monkeypatch.setitem(sys.modules, "qplug.pipeline.run", fake)


def failing(error: BaseException) -> Any:
    def run(*_: Any, **__: Any) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (SystemExit(0), 1, "error: code that qplug called ended the program: SystemExit(0) in "),
        (SystemExit(3), 1, "ended the program: SystemExit(3)"),
        (GeneratorExit(), 1, "unexpected error: GeneratorExit"),
        (KeyboardInterrupt(), 130, "interrupted; nothing was written\n"),
        (MemoryError(), 1, "error: memory ran out (MemoryError: )\n  → give the computation smaller batches"),
        (RuntimeError("could not create a primitive"), 1, "memory ran out (RuntimeError: could not create"),
        (RuntimeError("[enforce fail] not enough memory: you tried to allocate 9 bytes"), 1, "memory ran out"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "memory ran out"),
        (OSError(12, "Cannot allocate memory"), 1, "memory ran out"),
    ],
)
def test_each_end_has_its_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: Output, error: BaseException, code: int, message: str
) -> None:
    pipeline(monkeypatch, failing(error))
    assert call("run", "good.yaml", "--out", "out") == code
    text, errors = capsys.readouterr()
    assert text == ""
    assert message in errors
    assert "Traceback" not in errors


def test_lack_of_memory_is_no_fault_of_the_technique_that_met_it(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    error = PluginError("RuntimeError: x", where="toy.ranges of qplug-toy 1, qplug_smooth")
    error.__cause__ = MemoryError("no room")
    assert out_of_memory(error)
    pipeline(monkeypatch, failing(error))
    assert call("run", "good.yaml", "--out", "out") == 1
    said = capsys.readouterr().err
    assert "memory ran out (toy.ranges of qplug-toy 1, qplug_smooth: MemoryError: no room)" in said
    assert "report it" not in said


def test_the_library_names_code_that_ends_the_program() -> None:
    @exits_named
    def leaves() -> None:
        sys.exit(0)

    with pytest.raises(PluginError, match=r"ended the program: SystemExit\(0\) in .*test_streams.py:\d+"):
        leaves()


def test_only_results_are_on_standard_output(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    def noisy() -> Any:
        print("hello from a plugin")
        sys.stdout.write("and again\n")
        sys.stdout.close()
        sys.stdout = None  # type: ignore[assignment]
        return registry()

    monkeypatch.setattr("qplug.hooks.registry.installed", noisy)
    for arguments in (["plugins", "--json"], ["techniques", "--json"], ["schema"]):
        assert call(*arguments) == 0
        text, errors = capfd.readouterr()
        json.loads(text)
        assert errors.startswith("hello from a plugin\nand again\n")


def test_text_for_machines_holds_nothing_that_a_terminal_obeys(capsys: Output) -> None:
    Path("bad.yaml").write_text(GOOD.replace("toy.ranges", '"a\\e[31m\\u202e\\U000e0041"'))
    assert call("validate", "bad.yaml", "--json") == 2
    text = capsys.readouterr().out
    assert text.replace("\n", "").isprintable()
    assert "a\\x1b[31m\\u202e" in json.loads(text)["recipes"][0]["problems"][0]["what"]


def test_a_wrong_command_line_is_safe_to_print(capsys: Output) -> None:
    assert call("run", "good.yaml", "--no\x1b[31mthing") == 2
    said = capsys.readouterr().err
    assert "\\x1b[31mthing" in said
    assert "\x1b" not in said


def shell(command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False, timeout=300, **options
    )


@pytest.mark.skipif(os.name == "nt", reason="streams of POSIX")
@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("schema >&-", 1, "error: standard output: is closed\n  → to run without output: >/dev/null\n"),
        ("schema >/dev/full", 1, "error: standard output: cannot be written to: No space left on device\n"),
        ("--help >/dev/full", 1, "error: standard output: cannot be written to: No space left on device\n"),
        ("schema 2>&- >/dev/null", 0, ""),
        ("validate nothing.yaml 2>&-", 2, ""),
        ("schema | :; exit ${PIPESTATUS[0]}", 1, "error: standard output: its reader closed the pipe"),
    ],
)
def test_closed_and_full_streams(command: str, code: int, said: str) -> None:
    done = shell(f"{COMMAND} {command}")
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
