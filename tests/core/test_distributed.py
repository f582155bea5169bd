"""Ranks and device names from the variables of launchers."""

import pytest

from qplug import InputError, QplugError
from qplug.analysis.compare.load_runs import run_all
from qplug.cli.app import report_error
from qplug.core.distributed import COUNT, LOCAL, RANK, Processes, launched


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in (*COUNT, *RANK, *LOCAL, "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_launcher_there_is_one_process():
    assert launched() == Processes(0, 1, 0, "")
    assert launched().is_main
    assert launched().device("cuda") == "cuda"


@pytest.mark.parametrize("place", range(4))
def test_each_process_has_a_rank_and_a_gpu(monkeypatch, place):
    for names, value in ((RANK, "5"), (COUNT, "8"), (LOCAL, "1")):
        monkeypatch.setenv(names[place], value)
    processes = launched()
    assert (processes.index, processes.count, processes.local, processes.is_main) == (5, 8, 1, False)
    assert [processes.device(name) for name in ("cuda", "cuda:3", "cpu")] == ["cuda:1", "cuda:3", "cpu"]


def test_one_process_of_a_launcher_for_several_has_a_note(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # as 'accelerate launch --cpu --num_processes 2' does
    assert "started one" in launched().note


def test_comparisons_are_made_by_one_process(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="made by one process, received 2"):
        run_all([], tmp_path)


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_a_wrong_input_is_reported_once(monkeypatch, capsys, rank, lines):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    assert report_error(InputError("is wrong")) == 2
    assert capsys.readouterr().err.count("is wrong") == lines
    assert report_error(QplugError("broke")) == 1
    assert "broke" in capsys.readouterr().err


def test_a_variable_that_is_not_an_integer_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(InputError, match="WORLD_SIZE, received 'two'"):
        launched()
