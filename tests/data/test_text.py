"""Texts from files: every format gives the same examples, and errors name the row."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from qplug.core.errors import InputError
from qplug.core.examples import Answers
from qplug.data.loading import check_disjoint
from qplug.data.text import Text, TextItem, Texts

ROWS = [
    {"premise": "a, b", "hypothesis": "c\nd", "label": 0, "answers": {"text": ["d", "c"], "answer_start": [2, 0]}},
    {"premise": "é", "hypothesis": "no answer", "label": 2, "answers": {"text": [], "answer_start": []}},
]
PAIR = {"text_column": "premise", "pair_column": "hypothesis"}


def source(path: Path | str, split: str = "train", seed: int = 0, **values: Any) -> Texts:
    return Text(Text.Config(source="text", path=str(path), split=split, **values)).open(seed)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n", encoding="utf-8")
    return path.parent


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "json", "csv"])
def test_formats_give_the_same_examples(tmp_path: Path, suffix: str) -> None:
    texts = source(write(tmp_path / f"train-0.{suffix}", ROWS), **PAIR)
    assert [texts[i] for i in range(2)] == [(TextItem("a, b", "c\nd"), 0), (TextItem("é", "no answer"), 2)]
    assert [texts.label(i) for i in range(2)] == [0, 2]
    assert texts.key(1) == f"{tmp_path}:train[1]"
    other = source(write(tmp_path / "other" / "train.jsonl", ROWS), **PAIR)
    assert [texts.digest(i) for i in range(2)] == [other.digest(i) for i in range(2)]
    assert texts.size_hint(0) == other.size_hint(0) != texts.size_hint(1)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_the_first_answer_is_the_label(tmp_path: Path, suffix: str) -> None:
    texts = source(write(tmp_path / f"train.{suffix}", ROWS), **PAIR, answer_column="answers")
    assert [texts[i][1] for i in range(2)] == [Answers(2, 3, ("d", "c")), Answers(0, 0, ())]
    assert texts[0][1].content() == [2, 3, "d", "c"]


def test_splits_do_not_overlap_and_the_draw_depends_on_the_seed(tmp_path: Path) -> None:
    rows = [{"text": f"text {index}", "label": index} for index in range(20)]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", rows[:3])
    keys = [[texts.key(i) for i in range(5)] for texts in (source(tmp_path, seed=s, examples=5) for s in (0, 0, 1))]
    assert keys[0] == keys[1] != keys[2]
    with pytest.raises(InputError, match="share 3 examples"):
        check_disjoint(source(tmp_path), source(tmp_path, "test"))
    with pytest.raises(InputError, match="expected 1 … 20 examples, received 21"):
        source(tmp_path, examples=21)


def test_invalid_files_and_rows_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "train.jsonl", [*ROWS, {"premise": None, "hypothesis": "x", "label": "one", "answers": 3}])
    with pytest.raises(InputError, match="no column 'text'; the columns are premise, hypothesis, label, answers"):
        source(tmp_path)
    with pytest.raises(InputError, match=r"train\[2\]: column 'premise' holds no text"):
        source(tmp_path, text_column="premise")[2]
    with pytest.raises(InputError, match=r"train\[2\]: column 'label' must hold integers of 0 or more, received 'one'"):
        source(tmp_path, text_column="premise").label(2)
    with pytest.raises(InputError, match=r"column 'answers' holds no answers"):
        source(tmp_path, text_column="label", pair_column="hypothesis", answer_column="answers").label(2)
    with pytest.raises(InputError, match="no parquet or jsonl or json or csv or tsv file in it has 'dev' in its path"):
        source(tmp_path, "dev")
    write(tmp_path / "train-2.csv", [{"premise": "a", "label": 0}])
    with pytest.raises(InputError, match=r"files of the split have several formats: train-2.csv, train.jsonl"):
        source(tmp_path, text_column="premise")
    (tmp_path / "train-2.csv").write_text("premise,label\na,0\nb,1,2\n")
    with pytest.raises(InputError, match=r"train-2.csv:3: not readable as CSV: expected 2 values"):
        source(tmp_path, text_column="premise", files="*.csv")
    (tmp_path / "dev.jsonl").write_text('{"premise": "a", "label": 0}\n[]\n')
    with pytest.raises(InputError, match=r"dev.jsonl:2: .* expected one object per line, received list"):
        source(tmp_path, "dev", text_column="premise")
    write(tmp_path / "p" / "train.parquet", ROWS)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"qplug\[hf\]"):
        source(tmp_path / "p", **PAIR)


def test_calibration_needs_no_labels(tmp_path: Path) -> None:
    texts = source(write(tmp_path / "train.jsonl", [{"text": "a"}, {"text": "b"}]))
    assert [texts[index] for index in range(2)] == [(TextItem("a"), None), (TextItem("b"), None)]
    with pytest.raises(InputError, match="no column 'label'; the columns are text"):
        texts.label(0)


def test_an_answer_at_another_position_is_refused(tmp_path: Path) -> None:
    answers = {"text": ["c"], "answer_start": [1]}
    write(tmp_path / "train.jsonl", [{**ROWS[0], "answers": answers}])
    with pytest.raises(InputError, match="the context does not contain the answer 'c' at character 1"):
        source(tmp_path, **PAIR, answer_column="answers").label(0)


def test_only_one_column_defines_the_labels() -> None:
    with pytest.raises(ValidationError, match="'label_column' and 'answer_column' both define the labels"):
        source("x", label_column="a", answer_column="b", pair_column="c")
    with pytest.raises(ValidationError, match="'answer_column' needs 'pair_column'"):
        source("x", answer_column="b")


def test_glue_files_have_tabs_quotation_marks_and_words_as_labels(tmp_path: Path) -> None:
    rows = 'gold_label\tsentence1\tsentence2\nneutral\tA "word\tb, c\nentailment\td\t"e"\n-\tf\tg\n'
    (tmp_path / "train.tsv").write_text("\ufeff" + rows, encoding="utf-8")
    names = ["entailment", "neutral", "contradiction"]
    columns = {"text_column": "sentence1", "pair_column": "sentence2", "label_column": "gold_label"}
    texts = source(tmp_path, **columns, label_names=names)
    assert texts[0] == (TextItem('A "word', "b, c"), 1)
    assert texts.label(1) == 0
    assert list(texts.classes.labels) == names
    with pytest.raises(InputError, match="column 'gold_label' holds '-', and label_names are entailment, neutral"):
        texts.label(2)
    with pytest.raises(InputError, match="received 'neutral'") as error:
        source(tmp_path, **columns).label(0)
    assert "words need label_names" in error.value.fix
    (tmp_path / "train.tsv").write_text("a\tb\n1\n")
    with pytest.raises(InputError, match="not readable as TSV: expected 2 values"):
        source(tmp_path, text_column="a")
