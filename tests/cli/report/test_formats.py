"""Tables as Markdown, CSV and HTML: nothing is lost, and nothing in a cell becomes markup."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser

import pytest

from qplug.cli.report.formats import comma_separated, markdown, page
from qplug.cli.report.screen import Table
from qplug.core.text import escaped

TABLE = Table(
    "a|b <c>", ("name", "MB"), [("x|y", "1.5"), ("<script>", "20.0")], right=("MB",), notes=["p < 0.05 & *so*"]
)


def test_markdown() -> None:
    assert markdown([TABLE]).splitlines() == [
        r"**a\|b \<c>**",
        "",
        "| name | MB |",
        "| --- | ---: |",
        r"| x\|y | 1.5 |",
        r"| \<script> | 20.0 |",
        "",
        r"p \< 0.05 & \*so\*",
    ]


def test_markdown_of_a_table_without_rows_is_its_notes() -> None:
    assert markdown([Table("Legend", notes=["one", "two"])]) == "**Legend**\n\none\n\ntwo\n"


def test_csv_survives_the_way_back() -> None:
    rows = [{"name": 'a, "b"', "top1": 0.1 + 0.2, "seeds": [0, 1], "none": None}]
    (read,) = csv.DictReader(io.StringIO(comma_separated(rows)))
    assert read["name"] == 'a, "b"'
    assert float(read["top1"]) == 0.1 + 0.2
    assert json.loads(read["seeds"]) == [0, 1]
    assert read["none"] == ""


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =1", "＝1"])
def test_no_cell_of_csv_begins_like_a_formula(name: str) -> None:
    rows = [{"name": name, "drop": -0.25, "protocol": {name: name}, name: "x"}]
    (read,) = csv.DictReader(io.StringIO(comma_separated(rows), newline=""))
    plain = escaped(name) if name[0] in "\t\r" else f"'{name}"  # an escape begins no formula
    assert read["name"] == plain
    assert float(read["drop"]) == -0.25
    assert json.loads(read["protocol"]) == {name: name}
    assert read[plain] == "x"


class Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_html_holds_the_same_text_and_no_script() -> None:
    parser = Cells()
    parser.feed(page([TABLE, Table("Legend", notes=["one"])], "A <page>"))
    for text in ("A <page>", "a|b <c>", "x|y", "<script>", "20.0", "p < 0.05 & *so*", "one"):
        assert text in parser.text
    assert "script" not in parser.tags
    assert parser.tags.count("table") == 1
