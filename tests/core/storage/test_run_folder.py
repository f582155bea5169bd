"""A run folder is complete or absent, also after errors, full disks and signals."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qplug.core.errors import InputError, QplugError
from qplug.core.storage.run_folder import FILES, FORMAT, RunFolder, check_target, to_json
from qplug.core.storage.run_schema import digest_of

SMALL = ("metrics.json",)


def write_run(target: Path, **lock: object) -> None:
    import torch

    with RunFolder(target) as folder:
        folder.write_text("recipe.yaml", "version: 1\n")
        folder.write_lock({"format": FORMAT, **lock})
        folder.write_json("plan.json", {})
        folder.write_json("metrics.json", {"quantized.top1": 0.5})
        folder.write_tensors("evaluation.safetensors", {"labels": torch.arange(3, dtype=torch.int32)})
        folder.write_tensors("model.safetensors", {"w": torch.ones(2, 3)}, {"format": "pt"})


def write_half(target: Path) -> None:
    with RunFolder(target) as folder:
        folder.write_json("metrics.json", {})


def leftovers(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


def test_a_run_folder_appears_complete(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    write_run(tmp_path / "runs" / "one")
    assert leftovers(tmp_path / "runs") == ["one"]
    folder = tmp_path / "runs" / "one"
    assert load_file(folder / "model.safetensors")["w"].shape == (2, 3)
    assert sorted(leftovers(folder)) == sorted(FILES)


def test_the_lock_holds_the_digest_of_every_other_file_and_of_itself(tmp_path: Path) -> None:
    write_run(tmp_path / "one", seed=3, share=float("nan"))
    lock = json.loads((tmp_path / "one" / "lock.json").read_text())
    assert (lock["seed"], lock["share"]) == (3, None)
    assert set(lock["files"]) == {*FILES} - {"lock.json"}
    for name, record in lock["files"].items():
        content = (tmp_path / "one" / name).read_bytes()
        assert record == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert lock["digest"] == digest_of(lock)
    assert lock["digest"] != digest_of({**lock, "seed": 4})


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_run(tmp_path / "one")
    finally:
        os.umask(old)
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o755


def test_tensors_that_share_storage_are_written(tmp_path: Path) -> None:
    import torch

    whole = torch.arange(6.0)
    with RunFolder(tmp_path / "one", required=()) as folder:
        folder.write_tensors("model.safetensors", {"a": whole, "b": whole[2:4], "c": whole.reshape(2, 3).T})
    assert (tmp_path / "one" / "model.safetensors").is_file()


def test_an_existing_target_is_refused_at_the_start_and_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("there", "file", "link"):
        with pytest.raises(InputError, match="exists"):
            check_target(tmp_path / name)
        with pytest.raises(InputError, match="exists"), RunFolder(tmp_path / name):
            pytest.fail("the block must not be entered")

    def late() -> None:
        with RunFolder(tmp_path / "late", required=()) as folder:
            folder.write_text("a", "a")
            (tmp_path / "late").mkdir()

    with pytest.raises(InputError, match="was created by another process; nothing was written"):
        late()
    assert leftovers(tmp_path) == ["file", "late", "link", "there"]
    assert leftovers(tmp_path / "late") == []


def test_a_target_that_cannot_be_created_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a folder for the run folder, received a file"):
        check_target(tmp_path / "file" / "run")
    with pytest.raises(InputError, match="too long"):
        check_target(tmp_path / ("x" * 240))
    check_target(tmp_path / "a" / "b" / "c")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_parent_that_is_not_writable_is_refused_at_the_start(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="the folder cannot be written to"):
            check_target(tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), ValueError("x"), InputError("y")])
def test_an_error_in_the_block_leaves_no_file(tmp_path: Path, error: BaseException) -> None:
    def work() -> None:
        with RunFolder(tmp_path / "one", required=SMALL) as folder:
            folder.write_json("metrics.json", {})
            raise error

    with pytest.raises(type(error)):
        work()
    assert leftovers(tmp_path) == []


def test_a_file_that_is_missing_at_the_end_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        QplugError, match=r"recipe.yaml, lock.json, plan.json, evaluation.safetensors, model.safetensors missing"
    ):
        write_half(tmp_path / "one")
    assert leftovers(tmp_path) == []


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(QplugError, match="No space left on device; nothing was written") as caught:
        write_run(tmp_path / "one")
    assert caught.value.exit_code == 1
    monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(QplugError, match="No space left on device"):
        write_run(tmp_path / "one")
    monkeypatch.undo()
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(QplugError, match="No space left on device"):
        write_run(tmp_path / "deeper" / "one")
    assert leftovers(tmp_path) == []


def test_an_error_of_a_writer_of_another_format_is_clear_too(tmp_path: Path) -> None:
    with pytest.raises(QplugError, match="cannot write the run folder"), RunFolder(tmp_path / "one") as folder:
        (folder.path() / "none" / "figure.png").write_bytes(b"")
    assert leftovers(tmp_path) == []


def test_names_stay_in_the_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "one", required=()) as folder:
        for name in ("../x", "a/b", "/etc/x", ".."):
            with pytest.raises(ValueError, match="without folders"):
                folder.write_text(name, "")
    with pytest.raises(ValueError, match="inside its with block"):
        folder.write_text("a", "")


FULL = """
import resource, sys, torch
from qplug.core.storage.run_folder import RunFolder
from qplug.core.errors import QplugError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with RunFolder({target!r}, required=()) as folder:
        if {tensors}:
            folder.write_tensors("model.safetensors", {{"w": torch.ones(1 << 16)}})
        else:
            folder.write_text("plan.json", "x" * (1 << 16))
except QplugError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="limits of file size are POSIX")
@pytest.mark.parametrize("tensors", [True, False])
def test_a_real_limit_of_the_file_size(tmp_path: Path, tensors: bool) -> None:
    code = FULL.format(target=str(tmp_path / "one"), tensors=tensors)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 7, done.stderr
    assert "cannot write the run folder" in done.stdout
    assert leftovers(tmp_path) == []


WORK = """
import signal, sys, time
from qplug.core.storage.run_folder import RunFolder
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
with RunFolder({target!r}, required=()) as folder:
    folder.write_text("metrics.json", "x")
    print("half", flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_kill_in_the_middle_leaves_no_run_folder(tmp_path: Path, name: str) -> None:
    target = tmp_path / "one"
    command = [sys.executable, "-c", WORK.format(target=str(target))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as work:
        assert work.stdout is not None
        assert work.stdout.readline() == "half\n"
        assert not target.exists()
        work.send_signal(getattr(signal, name))
        assert work.wait(timeout=300) != 0
    assert not target.exists()
    assert bool(leftovers(tmp_path)) == (name == "SIGKILL")
    write_run(tmp_path / "two")  # removes the partial folder of the killed process
    assert leftovers(tmp_path) == ["two"]


def test_partial_folders_of_running_processes_and_other_machines_stay(tmp_path: Path) -> None:
    foreign = tmp_path / ".one.partial-999999999-00000000abcdefgh"
    own = tmp_path / ".notes.partial"
    foreign.mkdir()
    own.mkdir()
    with RunFolder(tmp_path / "one", required=()) as first:
        write_run(tmp_path / "two")
        assert first.path().is_dir()
    assert leftovers(tmp_path) == sorted([foreign.name, own.name, "one", "two"])


def test_json_is_strict() -> None:
    value = {"a": float("nan"), "b": [float("inf"), (1.5, -float("inf"))], "é": "✓"}
    text = to_json(value)
    assert json.loads(text) == {"a": None, "b": [None, [1.5, None]], "é": "✓"}
    with pytest.raises(TypeError):
        to_json({"a": object()})


def test_a_file_is_written_beside_no_rubbish_of_killed_processes(tmp_path: Path) -> None:
    from qplug.core.storage.atomic import partial_prefix, write_file

    own = tmp_path / f"{partial_prefix('table.onnx')}abc"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = tmp_path / own.name.replace(str(os.getpid()), str(ended.pid))
    for path in (own, dead):
        path.write_bytes(b"half")
    write_file(tmp_path / "model.onnx", b"whole")
    assert leftovers(tmp_path) == sorted([own.name, "model.onnx"])
