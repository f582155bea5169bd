"""Commands that are killed at any point: nothing is half written, nothing is left, and a repetition gives the same."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path
from random import Random

import pytest
from forked import command, cpu_seconds, start, wait

RECIPES = Path(__file__).parents[2] / "recipes"
KILLS = int(os.environ.get("QPLUG_KILLS", "40"))
"""Of each kind of command."""
DATA = ["data.calibration.images=8", "data.evaluation.images=16"]
SETTINGS = {
    "run": ("mptq_vit", []),
    "train": ("qat", ["qat.epochs=2", "qat.hold_out=40", "data.training.images=80"]),
    "reconstruct": ("brecq", ["techniques[0].iterations=6"]),
    "export": ("mptq_vit", []),
    "compare": ("mptq_vit", []),
}


def digest(path: Path) -> str:
    """Of what a command wrote, but for times and memory."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    names = ("plan.json", "model.safetensors", "evaluation.safetensors")
    return "".join(hashlib.sha256((path / name).read_bytes()).hexdigest() for name in names)


class Killed:
    """A command in a folder of its own."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        recipe, settings = SETTINGS[kind]
        made = [part for value in [*DATA, *settings] for part in ("--set", value)]
        run = ["run", str(RECIPES / f"{recipe}.yaml"), *made, "--cache", str(self.cache), "--out"]
        self.target = folder / ("run.onnx" if kind == "export" else "run")
        self.arguments = [*run, str(self.target)]
        if kind == "export":
            assert command([*run, str(folder / "source")], folder / "out.txt").code == 0
            self.arguments = ["export", str(folder / "source"), "--out", str(self.target), "--images", "2"]
        if kind == "compare":
            self.target = folder / "table.json"
            listed = str(RECIPES / f"{recipe}.yaml")
            kept = ["--runs", str(folder / "runs"), "--cache", str(self.cache)]
            self.arguments = ["compare", listed, *made, "--seeds", "0,1", *kept, "--json"]
        self.kind = kind

    def end(self) -> str:
        """The digest of what the command gives when it is left alone."""
        ended = command(self.arguments, self.folder / "out.txt")
        assert ended.code == 0, ended.text
        self.seconds = ended.cpu
        if self.kind == "compare":
            rows = json.loads(ended.text)["rows"]
            return json.dumps([{key: row[key] for key in ("recipe", "top1", "sqnr_db")} for row in rows], default=str)
        return digest(self.target)

    def kill(self, after: float) -> bool:
        """Whether it was killed, after that much processor time, before it ended."""
        process = start(self.arguments, self.folder / "out.txt")
        while process.exitcode is None and cpu_seconds(process) < after:
            process.join(0.005)
        process.kill()
        return wait(process, self.folder / "out.txt").code == -signal.SIGKILL

    def clear(self, cache: bool) -> None:
        """Remove what was written, and the cache if asked."""
        if self.target.is_dir():
            shutil.rmtree(self.target)
        self.target.unlink(missing_ok=True)
        if cache:
            shutil.rmtree(self.cache, ignore_errors=True)
            shutil.rmtree(self.folder / "runs", ignore_errors=True)


def check_kills(kind: str, kills: int, folder: Path) -> None:
    work = Killed(kind, folder)
    whole = work.end()
    longest, draw, killed, tries = work.seconds, Random(kind), 0, 0
    while killed < kills:
        tries += 1
        assert tries < 4 * kills + 20, "the command ends before it is killed"
        work.clear(cache=tries % 5 == 1)
        if not work.kill(draw.uniform(0.0, longest)):
            continue
        killed += 1
        if kind != "compare" and work.target.exists():
            assert digest(work.target) == whole, f"kill {killed} left something else at the target"
        if killed % 5 == 0 or killed == kills:
            work.clear(cache=False)
            assert work.end() == whole, f"the repetition after kill {killed} gives something else"
            left = [str(path) for path in folder.rglob("*") if ".partial-" in path.name]
            assert not left, f"kill {killed} left {left}"


@pytest.mark.slow
def test_a_killed_run_is_repeated_from_its_cache(tmp_path):
    check_kills("run", 4, tmp_path)


@pytest.mark.real
@pytest.mark.parametrize("kind", SETTINGS)
def test_commands_are_killed_at_random_points(kind, tmp_path):
    check_kills(kind, KILLS, tmp_path)
