"""Mutated recipes and run folders: an exit code of 0 or 2, one screen of text, no traceback and no hang."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random

import pytest
from forked import Ended, command
from mutations import damage, mutated_text

RECIPES = Path(__file__).parents[2] / "recipes"
SECONDS = 10.0
"""Processor time that a command may take."""
CONTROL = {chr(code) for code in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))} - {
    "\n"
}
MANY = int(os.environ.get("QPLUG_MUTATIONS", "5000"))


def faults(ended: Ended, codes: tuple[int, ...] = (0, 2)) -> list[str]:
    """What a user should not see of a command."""
    found = [f"exit code {ended.code}"] if ended.code not in codes else []
    found += [word for word in ("Traceback", "unexpected error") if word in ended.text]
    found += [f"{ended.cpu:.1f} s"] if ended.cpu > SECONDS else []
    found += [f"{len(ended.text)} characters"] if len(ended.text) > 8_000 else []
    found += [f"control characters {shown}"] if (shown := ascii(set(ended.text) & CONTROL)) != "set()" else []
    return found


def check_recipes(seeds: range, folder: Path) -> None:
    sources = [path.read_text() for path in sorted(RECIPES.rglob("*.yaml"))]
    wrong = []
    for seed in seeds:
        draw = Random(seed)
        recipe = folder / "recipe.yaml"
        recipe.write_bytes(mutated_text(draw.choice(sources), draw))
        ended = command(["validate", str(recipe)], folder / "out.txt", SECONDS)
        found = faults(ended)
        if ended.code == 2 and "recipe.yaml:" not in ended.text:
            found.append("no line")
        if found:
            shutil.copy(recipe, folder / f"wrong-{seed}.yaml")
            wrong.append(f"{seed}: {', '.join(found)}: {ended.text[:300]!a}")
    assert not wrong, f"{len(wrong)} of {len(seeds)} in {folder}:\n" + "\n".join(wrong[:40])


@pytest.mark.slow
def test_mutated_recipes_are_refused_by_line(tmp_path):
    check_recipes(range(100), tmp_path)


@pytest.mark.real
def test_many_mutated_recipes_are_refused_by_line(tmp_path):
    check_recipes(range(100, 100 + MANY), tmp_path)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """Two run folders of one recipe, of two seeds."""
    root = tmp_path_factory.mktemp("runs")
    few = ["--set", "data.calibration.images=8", "--set", "data.evaluation.images=16", "--no-cache"]
    for seed in (0, 1):
        arguments = [
            "run",
            str(RECIPES / "mptq_vit.yaml"),
            "--set",
            f"seed={seed}",
            "--out",
            str(root / str(seed)),
            *few,
        ]
        ended = command(arguments, root / "out.txt")
        assert ended.code == 0, ended.text
    return root / "0", root / "1"


def check_folders(seeds: range, whole: Path, other: Path, folder: Path) -> None:
    wrong = []
    for seed in seeds:
        draw, run = Random(seed), folder / "damaged"
        shutil.copytree(whole, run)
        done = damage(run, other, draw)
        arguments = draw.choice(
            [
                ["compare", str(run), str(whole)],
                ["export", str(run), "--out", str(folder / "file.onnx"), "--images", "2"],
                ["verify", str(run)],
            ]
        )
        ended = command(arguments, folder / "out.txt", 60.0 if arguments[0] != "compare" else SECONDS)
        codes = {"compare": (0, 2), "export": (0, 2), "verify": (1, 2)}[arguments[0]]
        ended.cpu = 0.0 if arguments[0] != "compare" else ended.cpu
        found = faults(ended, codes)
        found += ["damage is not seen"] if arguments[0] == "export" and ended.code == 0 else []
        found += ["the folder is not named"] if "damaged" not in ended.text else []
        if arguments[0] == "compare" and ended.code == 0 and "mptq_vit" not in ended.text:
            found.append("the other run is not shown")
        if found:
            wrong.append(f"{seed}: {done}, {arguments[0]}: {', '.join(found)}: {ended.text[:400]!a}")
        shutil.rmtree(run)
        (folder / "file.onnx").unlink(missing_ok=True)
    assert not wrong, f"{len(wrong)} of {len(seeds)}:\n" + "\n".join(wrong[:40])


@pytest.mark.slow
def test_damaged_run_folders_are_refused_by_name(two_runs, tmp_path):
    check_folders(range(10), *two_runs, tmp_path)


@pytest.mark.real
def test_many_damaged_run_folders_are_refused_by_name(two_runs, tmp_path):
    check_folders(range(10, 10 + MANY // 10), *two_runs, tmp_path)
