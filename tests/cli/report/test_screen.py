"""Plain text is whole and without decoration; a terminal gets lines and colors."""

from __future__ import annotations

import io

import pytest
from recipe_toys import registry

from qplug.cli.app import show
from qplug.cli.report.catalogue import plugins_table, technique, technique_tables, techniques_table
from qplug.cli.report.progress import Progress, loading
from qplug.cli.report.screen import Screen, Table
from qplug.core.errors import InputError, Problem, RecipeError
from qplug.core.text import Alarm
from qplug.core.types import Event


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


TABLE = Table("Title", ("name", "count"), [("x" * 120, "1"), ("[b]y[/b]", "234")], ("count",), ["a note"], "One\ntwo.")


def test_plain_tables_are_aligned_and_never_cut() -> None:
    stream = io.StringIO()
    Screen(stream).table(TABLE)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "Title"
    assert lines[2] == "x" * 120 + "      1"
    assert lines[3] == "[b]y[/b]" + " " * 112 + "    234"
    assert lines[4:] == ["a note", "One", "two.", ""]
    assert stream.getvalue().isascii()
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_gets_the_same_words_with_lines() -> None:
    stream = Terminal()
    Screen(stream).table(TABLE)
    text = stream.getvalue()
    assert "─" in text
    assert "[b]y[/b]" in text
    assert "One two." in text


NUMBERS = ("top-1", "points lost", "MACs quantized")
WIDE = Table(
    "Wide",
    ("site", "why", *NUMBERS),
    [("blocks.0.mlp.fc1.input", "one two three " * 3, "98.2 % ±0.1", "1", "2")],
    NUMBERS,
)


@pytest.mark.parametrize("space", [44, 60, 80, 200])
def test_a_terminal_never_cuts_numbers_and_names(monkeypatch: pytest.MonkeyPatch, space: int) -> None:
    """A table that is too wide continues below, with its first column repeated."""
    monkeypatch.setenv("COLUMNS", str(space))
    stream = Terminal()
    Screen(stream).table(WIDE)
    lines = stream.getvalue().splitlines()
    parts = list(WIDE.parts(space))
    assert sorted({index for part in parts for index, _ in part}) == list(range(5))
    assert all(part[0][0] == 0 for part in parts)
    assert sum("blocks.0.mlp.fc1.input" in line for line in lines) == len(parts)
    assert any("98.2 % ±0.1" in line for line in lines)
    assert max(len(line) for line in lines if "─" in line) <= space
    assert (len(parts) > 1) is (space < 80)


def test_a_word_that_is_wider_than_the_terminal_is_folded() -> None:
    assert list(Table("", ("name", "n"), [("x" * 120, "1")], ("n",)).parts(40)) == [[(0, 36), (1, 1)]]


def test_long_errors_stay_within_one_screen_and_say_so() -> None:
    problems = [Problem(f"a.yaml:{i}:1", "is wrong", "fix it", "    1 | a\n      | ^") for i in range(50)]
    stream = io.StringIO()
    Screen(stream).error(RecipeError(problems))
    lines = stream.getvalue().splitlines()
    assert len(lines) <= 24
    assert lines[-1] == "and 45 more; 50 problems"


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_errors_have_place_and_advice(stream: io.StringIO) -> None:
    Screen(stream).error(InputError("is wrong", where="a/b.png", fix="[bold]look[/bold]"))
    Screen(stream).error(RecipeError([Problem("a.yaml:1:1", "[red]", "do", "    1 | a\n      | ^")]))
    for word in ("a/b.png: is wrong", "→ [bold]look[/bold]", "a.yaml:1:1", "[red]", "→ ", "1 problem"):
        assert word in stream.getvalue()


def test_tables_of_plugins_and_techniques() -> None:
    text = plugins_table(registry()).plain()
    assert "torn (qplug-torn 0.4): ModuleNotFoundError: No module named 'scipy'" in text
    assert "2 techniques" in text
    assert "toy.ranges  Ranges.       a toy" in techniques_table(registry()).plain()
    about, parameters = technique_tables(registry(), "toy.ranges")
    assert "qplug_make_quantizer" in about.plain()
    assert "toy (qplug-toy 1.2.3)" in about.plain()
    assert parameters.rows[0] == ("percentile", "number ≥ 50.0 ≤ 100.0", "99.9", "per cent of the values kept")
    types = {p["name"]: p["type"] for p in technique(registry(), "toy.split")["parameters"]}
    assert types == {
        "split": "whole number or auto",
        "limits": "list of whole number",
        "granularity": "per_tensor, per_channel, per_head",
    }
    with pytest.raises(InputError, match=r"did you mean 'toy\.ranges'"):
        technique(registry(), "toy.range")
    with pytest.raises(InputError, match=r"torn \(qplug-torn 0\.4\), which failed to load: ModuleNotFoundError"):
        technique(registry(), "torn.x")


def test_progress_in_a_pipe_is_one_line_for_each_long_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 0.5, 1.0, 4.5])
    monkeypatch.setattr("time.monotonic", lambda: next(now, 9.0))
    stream = io.StringIO()
    with Progress(stream) as progress:
        for stage in ("short", "long"):
            progress.qplug_observe(Event(stage, "start"))
            progress.qplug_observe(Event(stage, "advance", 1, 2))
            progress.qplug_observe(Event(stage, "end", note="done"))
    assert stream.getvalue().splitlines()[-1].startswith("long: ")
    assert "\x1b" not in stream.getvalue()


def test_progress_on_a_terminal_draws_bars() -> None:
    stream = Terminal()
    with Progress(stream) as progress:
        progress.qplug_observe(Event("statistics", "start", 0, 8))
        progress.qplug_observe(Event("statistics", "advance", 4, 8, "[x]"))
        progress.advance("train", 1, 3)
        progress.qplug_observe(Event("statistics", "end", 8, 8))
        progress.qplug_observe(Event("unknown length", "start"))
        progress.qplug_observe(Event("unknown length", "end"))
    assert "statistics" in stream.getvalue()
    progress.qplug_observe(Event("late", "start"))  # behind the block, nothing is drawn


def test_alarms_come_first_and_in_bold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for terminal in (True, False):
        stream = Terminal() if terminal else io.StringIO()
        monkeypatch.setattr("sys.stdout", stream)
        show((), ["random weights", Alarm("at chance")])
        first, second = stream.getvalue().splitlines()
        assert first == ("\x1b[1;31mwarning: at chance\x1b[0m" if terminal else "warning: at chance")
        assert "random weights" in second


def test_a_terminal_hears_of_the_import_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qplug.cli.report.progress.sys.modules", {})
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        with loading(stream):
            pass
    assert (terminal.getvalue(), pipe.getvalue()) == ("loading torch …\r\x1b[2K", "")
    monkeypatch.setattr("qplug.cli.report.progress.sys.modules", {"torch": io})
    with loading(terminal):
        pass
    assert terminal.getvalue().count("loading") == 1


def test_progress_says_done_of_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    with Progress(terminal) as progress:
        for event in (
            Event("sites", "start"),
            Event("[red]bits\x1b", "start", 0, 34),
            Event("[red]bits\x1b", "advance", 3, 34, "9 pairs"),
            Event("[red]bits\x1b", "end", 34, 34),
        ):
            progress.qplug_observe(event)
        assert progress._bars is not None
        counts = {task.description: task.fields["count"] for task in progress._bars.tasks}
        progress._bars.refresh()
    assert counts == {"sites": "", "[red]bits\\x1b": "34/34"}
    assert "None" not in terminal.getvalue()
    assert "[red]bits\\x1b" in terminal.getvalue()
