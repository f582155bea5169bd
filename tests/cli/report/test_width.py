"""Tables at 80 columns: no word and no number is broken, and what is alike in all rows takes no column."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest

from qplug.cli.report.catalogue import plugins_table, technique_tables, techniques_by_plugin
from qplug.cli.report.screen import GAP, Screen, Table
from qplug.core.errors import InputError
from qplug.hooks.registry import installed


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


RUNS = Table(
    "deit_tiny: 200 images",
    ("recipe", "bits", "protocol", "top-1", "points lost", "same as", "agreement", "SQNR", "MB", "seconds", "folder"),
    [
        ("float", "W32A32", "", "80.0 %", "", "", "", "", "22.90", "", ""),
        ("mptq_vit_w4a4", "W4A4", "A", "62.0 %", "18.0", "", "90.0 %", "7.5 dB", "3.26", "120.5", "mptq_vit_w4a4"),
        ("minmax_w4a4", "W4A4", "A", "12.0 %", "68.0", "", "90.0 %", "9.1 dB", "3.26", "35.1", "minmax_w4a4"),
    ],
    ("bits", "top-1", "points lost", "agreement", "SQNR", "MB", "seconds"),
    less=("protocol", "same as", "agreement", "SQNR", "seconds", "folder"),
    styles={0: "dim", 1: "green"},
)


def tables() -> Iterator[Table]:
    registry = installed()
    yield RUNS
    yield plugins_table(registry)
    yield from techniques_by_plugin(registry)
    for name in sorted(registry.techniques):
        yield from technique_tables(registry, name)


def shown(table: Table, monkeypatch: pytest.MonkeyPatch, width: int = 80, **environment: str) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = Terminal()
    Screen(stream).table(table)
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 140])
def test_no_word_and_no_number_is_broken(width: int) -> None:
    for table in tables():
        drawn = table.safe().narrow(width)
        for part in drawn.parts(width) if drawn.rows else ():
            assert sum(size for _, size in part) + GAP * (len(part) - 1) <= width
            for column, size in part:
                number = bool(drawn.columns) and drawn.columns[column] in drawn.right
                cells = [row[column] for row in drawn.rows] + (list(drawn.columns[column : column + 1]))
                for cell in cells:
                    words = [cell] if number and cell in [row[column] for row in drawn.rows] else cell.split()
                    assert max(map(len, words), default=0) <= size, (table.title, cell)


def test_a_narrow_terminal_shows_what_matters_first(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(RUNS, monkeypatch)
    places = [text.index(name) for name in ("top-1", "MB", "SQNR", "seconds")]
    assert places == sorted(places)
    assert "in every row: protocol A, agreement 90.0 %" in text
    assert "same as" not in text  # it is empty
    assert "folder" not in text  # it repeats the recipes
    assert text.count("minmax_w4a4") == 1
    wide = shown(RUNS, monkeypatch, 200)
    assert "in every row" not in wide
    assert wide.count("minmax_w4a4") == 2  # as recipe and as folder
    assert RUNS.plain().splitlines()[1].split()[-1] == "folder"  # a pipe gets all columns


def test_one_row_has_a_list_of_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Table("", RUNS.columns, RUNS.rows[:2], RUNS.right, less=RUNS.less, styles=RUNS.styles)
    assert "mprotocol A, agreement 90.0 %, SQNR 7.5 dB, seconds 120.5\x1b" in shown(one, monkeypatch, NO_COLOR="1")


def test_colors_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    green = "\x1b[32m"
    assert green in shown(RUNS, monkeypatch, 200)
    assert green not in shown(RUNS, monkeypatch, 200, NO_COLOR="1")
    assert green not in shown(RUNS, monkeypatch, 200, TERM="dumb")
    stream = io.StringIO()
    Screen(stream).table(RUNS)
    assert "\x1b" not in stream.getvalue()


def test_names_cannot_command_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "\x1b]0;t\x07\u202e\n"
    table = Table(evil, (evil, "n"), [(evil, "1")], ("n",), [evil], evil, less=("n",))
    for text in (shown(table, monkeypatch, NO_COLOR="1"), table.safe().plain()):
        assert "\\x1b]0;t\\x07\\u202e" in text
        assert "\x07" not in text
        assert "\u202e" not in text
        assert "\x1b]" not in text


def test_techniques_by_plugin_and_by_paper() -> None:
    registry = installed()

    def names(word: str) -> list[str]:
        found: Any = techniques_by_plugin(registry, word)
        return [row[0] for table in found for row in table.rows if row[0]]

    assert names("mptq") == ["mptq_vit.greedy_mp", "mptq_vit.opt_m", "mptq_vit.sq_b"]
    assert names("MPTQ_VIT") == names("mptq")
    assert names("Jacob") == ["baseline.ema", "baseline.minmax"]
    assert len(names("")) == len(registry.techniques)
    with pytest.raises(InputError, match="there is no technique 'mptk'"):
        names("mptk")
    assert not any("``" in cell for table in techniques_by_plugin(registry) for row in table.rows for cell in row)
