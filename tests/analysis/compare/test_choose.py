"""Filters and order of rows, with missing values."""

from __future__ import annotations

import pytest

from qplug import InputError
from qplug.analysis.compare.choose import condition, in_order

ROWS = [
    {"name": "a", "top1": 0.5, "paper": None, "seeds": [0]},
    {"name": "b (k=1)", "top1": None, "paper": "P", "seeds": [0]},
    {"name": "c<=d", "top1": 0.7, "paper": "O", "seeds": [0]},
]


def kept(text):
    return [row["name"][0] for row in ROWS if condition(text)(row)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("top1>0.5", "c"),
        ("top1 >= 5e-1", "ac"),
        ("top1!=0.5", "c"),  # what is missing never fits
        ("name=b (k=1)", "b"),
        ("name=*<=*", "c"),
        ("name!=[ab]*", "c"),
        ("paper=*", "bc"),
        ("paper!=P", "c"),
    ],
)
def test_conditions(text, names):
    assert kept(text) == list(names)


def test_missing_values_come_last_in_both_orders():
    names = [
        [row["name"][0] for row in in_order(ROWS, key, least)] for key, least in (("top1", ()), ("top1", ["top1"]))
    ]
    assert names == [["c", "a", "b"], ["a", "c", "b"]]
    assert [row["name"][0] for row in in_order(ROWS, "paper", ())] == ["c", "b", "a"]
    assert in_order(ROWS, "none", ()) == ROWS
    assert in_order([], "top1", ()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("=3", "expected KEY, one of"),
        ("top1=", "top1 is a number, received ''"),
        ("top2=1", "did you mean 'top1'"),
        ("seeds=0", "expected a key of a number or of text"),
        ("name>a", "has no order"),
    ],
)
def test_wrong_conditions_are_explained(text, message):
    with pytest.raises(InputError, match=message) as caught:
        kept(text)
    assert caught.value.where == f"--where {text}"
