"""Finished runs are read, and recipes without a finished run are run."""

from __future__ import annotations

import copy
import shutil

import pytest
from run_toys import TEXT, write_run

from qplug import InputError, hookimpl, load_recipe
from qplug.analysis.compare.load_runs import finished, read_all, run_all, run_folders
from qplug.core.storage.cache import Cache
from qplug.hooks.registry import installed


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "minmax.yaml"
    path.write_text(TEXT)
    return lambda *overrides: load_recipe(path, overrides)


@pytest.mark.slow
def test_only_missing_runs_are_run(tmp_path, recipe):
    said = []
    runs, cache = tmp_path / "runs", Cache(tmp_path / "cache")
    recipes = [recipe(), recipe("quantize.weights.bits=6"), recipe("name=alias")]
    first = run_all(recipes, runs, cache=cache, announce=said.append)
    assert said[0] == f"2 runs: 0 finished, 2 to run in {runs}"
    assert [run.recipe["quantize"]["weights"]["bits"] for run in first.runs] == [4, 6, 4]
    assert first.runs[0].folder == first.runs[2].folder
    assert first.runs[0].folder.name.startswith("minmax-s0-")
    assert first.failures == []
    again = run_all(recipes, runs, announce=said.append)
    assert [run.folder for run in again.runs] == [run.folder for run in first.runs]
    assert said[-1] == f"2 runs: 2 finished, 0 to run in {runs}"
    assert sorted(key for key, _ in finished(runs)) == sorted({run.lock.run_key for run in first.runs})


def test_a_recipe_that_cannot_be_run_does_not_keep_the_others_from_running(tmp_path, recipe):
    found = run_all([recipe("data.calibration.images=100000"), recipe()], tmp_path / "runs")
    assert len(found.runs) == 1
    (failure,) = found.failures
    assert isinstance(failure, InputError)
    assert failure.where.startswith("minmax · calibration.images=100000, seed 0")
    assert "100000" in str(failure)


def test_an_error_that_nobody_foresaw_does_not_either(tmp_path, recipe, monkeypatch):
    def fails(made, **_):
        raise MemoryError("cannot allocate  memory")

    monkeypatch.setattr("qplug.pipeline.run.run", fails)
    found = run_all([recipe(), recipe("seed=1")], tmp_path / "runs")
    assert [error.where for error in found.failures] == ["minmax, seed 0", "minmax, seed 1"]
    assert found.failures[0].what == "MemoryError: cannot allocate memory"
    assert found.failures[0].exit_code == 1


@pytest.mark.slow
def test_recipes_whose_code_is_in_no_file_are_run_each_time_and_answer_for_none(tmp_path, recipe):
    """Nobody can tell whether they are alike, so the second must not be given the first one's figures."""
    registry = copy.copy(installed())
    base = registry.techniques["baseline.minmax"]
    registry.techniques = {"baseline.minmax": type("Typed", (base,), {"__module__": "__console__"})}
    recipes = [recipe(), recipe("quantize.weights.bits=6")]
    for count in (2, 4):
        found = run_all(recipes, tmp_path / "runs", registry=registry)
        assert found.failures == []
        assert [run.recipe["quantize"]["weights"]["bits"] for run in found.runs] == [4, 6]
        assert len(list((tmp_path / "runs").iterdir())) == count


@pytest.mark.slow
def test_a_run_finished_by_another_process_is_read(tmp_path, recipe, monkeypatch):
    """Both began with an empty folder: the slower one finds the run before it begins, or when it is to be written."""
    (run,) = run_all([recipe()], tmp_path / "other").runs
    target = tmp_path / "runs" / run.folder.name

    def finish(*_):
        shutil.copytree(run.folder, target)

    found = run_all([recipe()], tmp_path / "runs", announce=lambda text: finish() if text.startswith("[1/1]") else None)
    assert ([run.folder for run in found.runs], found.failures) == ([target], [])
    shutil.rmtree(target)
    found = run_all([recipe()], tmp_path / "runs", observers=[At("evaluation", finish)])
    assert ([run.folder for run in found.runs], found.failures) == ([target], [])


class At:
    """Does something when a stage ends."""

    def __init__(self, stage, do):
        self.stage, self.do = stage, do

    @hookimpl
    def qplug_observe(self, event):
        if (event.stage, event.phase) == (self.stage, "end"):
            self.do()


def test_a_folder_that_blocks_a_run_is_named_with_the_reason(tmp_path, recipe):
    (run,) = run_all([recipe()], tmp_path / "runs").runs
    (run.folder / "plan.json").unlink()
    (failure,) = run_all([recipe()], tmp_path / "runs").failures
    assert str(run.folder) in failure.where
    assert "this run cannot be written: is not a whole run folder: plan.json missing" in failure.what
    assert failure.fix == "move or remove it"


@pytest.mark.slow
def test_a_finished_run_that_is_damaged_is_named_and_the_rest_is_read(tmp_path, recipe):
    recipes = [recipe(), recipe("quantize.weights.bits=6")]
    first = run_all(recipes, tmp_path / "runs").runs[0].folder
    (first / "evaluation.safetensors").write_bytes(b"half")
    for found in (run_all(recipes, tmp_path / "runs"), read_all([tmp_path / "runs"])):
        assert [run.recipe["quantize"]["weights"]["bits"] for run in found.runs] == [6]
        assert "evaluation.safetensors" in str(found.failures[0])
        assert "remove the folder, and run its recipe again" in str(found.failures[0])


def test_a_half_written_run_answers_nothing(tmp_path, recipe):
    runs = tmp_path / "runs"
    (run,) = run_all([recipe()], runs).runs
    shutil.copytree(run.folder, runs / "half")
    (runs / "half" / "plan.json").unlink()
    (runs / "broken").mkdir()
    (runs / "broken" / "lock.json").write_text("{")
    assert [folder.name for _, folder in finished(runs)] == [run.folder.name]


def test_folders_of_runs(tmp_path):
    one, two = write_run(tmp_path / "runs" / "one"), write_run(tmp_path / "runs" / "two")
    (tmp_path / "runs" / ".three.partial-1-00000000ab").mkdir()
    (tmp_path / "runs" / "table.html").write_text("")
    assert run_folders(tmp_path / "runs") == [one, two]
    assert run_folders(one) == [one]
    assert run_folders(tmp_path / "nowhere") == [tmp_path / "nowhere"]


def test_unreadable_runs_are_named_and_the_rest_is_read(tmp_path):
    good, half = write_run(tmp_path / "good"), write_run(tmp_path / "half")
    (half / "evaluation.safetensors").unlink()
    older = write_run(tmp_path / "older")
    (older / "lock.json").write_text('{"format": 1, "qplug": "0.1.0"}')
    found = read_all([good, half, older, tmp_path / "nowhere"])
    assert [run.folder for run in found.runs] == [good]
    text = [str(error) for error in found.failures]
    assert "half: is not a whole run folder: evaluation.safetensors missing" in text[0]
    assert "format 5 was expected, received 1" in text[1]
    assert "run its recipe again" in text[1]
    assert "nowhere: there is no such run folder" in text[2]


@pytest.mark.parametrize(("path", "message"), [("table", "is a file, not a run folder"), ("x" * 300, "no such run")])
def test_a_path_that_cannot_be_a_folder_is_named(tmp_path, path, message):
    (tmp_path / "table").write_text("")
    (failure,) = read_all([tmp_path / path]).failures
    assert message in str(failure)


@pytest.mark.parametrize("name", ["model.safetensors", "plan.json"])
def test_a_file_that_no_table_reads_must_be_that_of_the_run_too(tmp_path, name):
    good, damaged = write_run(tmp_path / "good"), write_run(tmp_path / "damaged")
    content = bytearray((damaged / name).read_bytes())
    content[-1] ^= 1
    (damaged / name).write_bytes(content)
    found = read_all([good, damaged])
    assert [run.folder for run in found.runs] == [good]
    assert f"{name}: is not the file that the run wrote" in str(found.failures[0])
