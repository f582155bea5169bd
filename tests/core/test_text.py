"""Names in messages: suggestions, and names that neither fill the terminal nor reach it raw."""

from __future__ import annotations

import pytest

from qplug.core.text import close, did_you_mean, escaped, percent, short

NAMES = ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "davit_tiny", "deit_small_patch16_224"]


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("deit_tiny", NAMES, ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "davit_tiny"]),
        ("DEIT_TINY_P", NAMES, ["deit_tiny_patch16_224"]),
        ("davit_tinny", NAMES, ["davit_tiny"]),
        ("minmax", ["baseline.minmax", "fq_vit.ptf"], ["baseline.minmax"]),
        ("b", ["bits", "backend"], []),
        ("xyz", NAMES, []),
    ],
)
def test_close(word, known, expected):
    assert close(word, known)[: len(expected)] == expected
    assert bool(close(word, known)) == bool(expected)


def test_did_you_mean():
    assert did_you_mean("bit", ["bits", "seed"]) == "did you mean 'bits'?"
    assert did_you_mean("q", ["bits"]) == ""


HOSTILE = {
    "\x1b[31mred": "\\x1b[31mred",
    "\x1b]0;title\x07": "\\x1b]0;title\\x07",
    "\x9b2J": "\\x9b2J",
    "a\u202eb": "a\\u202eb",
    "a\u2066b\u2069": "a\\u2066b\\u2069",
    "a\u200db\ufeff": "a\\u200db\\ufeff",
    "\U000e0041": "\\U000e0041",
    "half \udcff": "half \\udcff",
    "a\rb\tc\x00": "a\\rb\\tc\\x00",
    "\u2028": "\\u2028",
}


@pytest.mark.parametrize("raw", HOSTILE)
def test_what_a_terminal_would_obey_is_escaped(raw: str) -> None:
    assert escaped(raw) == HOSTILE[raw]
    assert escaped(f"line\n{raw}") == f"line\n{HOSTILE[raw]}"
    assert escaped(f"line\n{raw}", breaks=False) == f"line\\n{HOSTILE[raw]}"
    assert short(raw).isprintable()


def test_other_text_stays_as_it_is() -> None:
    assert escaped("Δ → ü 漢字 🙂 a'b\"c\\d") == "Δ → ü 漢字 🙂 a'b\"c\\d"


def test_a_long_name_is_cut() -> None:
    assert short("x" * 60) == "x" * 60
    assert short("x" * 100_000) == "x" * 59 + "…"
    assert len(short("\x1b" * 100_000)) == 60
    assert close("x" * 100_000, ["x.y", "baseline.mse"]) == []


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0.0 %"),
        (1.0, "100.0 %"),
        (0.5, "50.0 %"),
        (0.0001, "0.01 %"),
        (0.99999, "99.999 %"),
        (1e-9, "0.000000 %"),
    ],
)
def test_a_share_is_0_or_100_percent_only_where_it_is(share, text):
    assert percent(share) == text
