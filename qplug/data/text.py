"""Data source of texts, pairs of texts and questions, from a folder of files or a Hugging Face data set by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from qplug.core.component import Config, DataSource
from qplug.core.errors import InputError
from qplug.core.examples import Answers, Classes, Label
from qplug.core.storage.hashing import sha256
from qplug.data.loading import choose
from qplug.data.tables import LINES, TABLES, ParquetRows, PlainRows, Rows, files_in, folder_of, named, need_datasets


@dataclass(frozen=True)
class TextItem:
    """A text with an optional second text, ``pair``; the pair of a question is its context."""

    text: str
    pair: str | None = None


class Text(DataSource):
    """Texts with integer labels, or questions with the position of their answer in a context (SQuAD's layout).

    The files of a folder are read in place: parquet, JSON lines (``.jsonl``, ``.json``), CSV, or TSV as GLUE's (tabs,
    no quoting). Any other path is the name of a data set, which the ``datasets`` library loads from its own cache or
    downloads.
    """

    class Config(Config):
        """``data.*: {source: text, path: …/mnli, split: train, text_column: premise, pair_column: hypothesis}``."""

        source: Literal["text"]
        path: str = Field(min_length=1, description="a folder of parquet, JSON lines, CSV or TSV, or a data set's name")
        split: str = Field(min_length=1, description="the split; in a folder, the files with this word in their path")
        text_column: str = Field(default="text", description="the column that holds the texts, or the questions")
        pair_column: str | None = Field(
            default=None, description="the column that holds second texts, or the contexts; none if unset"
        )
        label_column: str | None = Field(
            default=None, description="the column that holds the labels, as integers; 'label' if neither is set"
        )
        label_names: tuple[str, ...] = Field(
            default=(),
            description="where the labels are words, such as MNLI's: the words in the order of the model's outputs",
        )
        answer_column: str | None = Field(
            default=None,
            description="for questions: the column of answers, each {text: […], answer_start: […]}; the first is used",
        )
        files: str | None = Field(
            default=None, min_length=1, description="glob over the folder's files, in place of the split's name"
        )
        examples: int | None = Field(
            default=None,
            ge=1,
            description="number of examples, drawn with the recipe's seed (for evaluation, with a fixed seed); "
            "all if unset",
        )

        @model_validator(mode="after")
        def _one_truth(self) -> Text.Config:
            if self.answer_column is not None and self.label_column is not None:
                raise ValueError("'label_column' and 'answer_column' both define the labels; give one")
            if self.answer_column is not None and self.pair_column is None:
                raise ValueError("'answer_column' needs 'pair_column', the contexts that hold the answers")
            return self

        @property
        def truth_column(self) -> str:
            """The column of labels or answers."""
            return self.answer_column or self.label_column or "label"

    def open(self, seed: int) -> Texts:
        """Draw the examples; raises ``InputError`` for invalid files, columns or numbers."""
        config = self.config
        wanted = [c for c in (config.text_column, config.pair_column, config.truth_column) if c is not None]
        rows = self._rows(wanted)
        missing = [column for column in wanted if column not in rows.features and column != config.truth_column]
        if missing:
            raise InputError(
                f"there is no column '{missing[0]}'; the columns are {', '.join(rows.features)}",
                where=config.path,
                fix="set text_column, pair_column and label_column or answer_column",
            )
        where = f"{config.path}, split {config.split}"
        return Texts(rows, config, sorted(choose(len(rows), config.examples, seed, where, "examples")))

    def _rows(self, columns: Sequence[str]) -> Rows:
        folder = folder_of(self.config.path)
        if folder is None:
            need_datasets("text")
            rows: Rows = named(self.config.path, self.config.split, self.config.files)
            return rows
        files = files_in(folder, self.config.split, self.config.files, (".parquet", *LINES, *TABLES))
        if files[0].suffix != ".parquet":
            return PlainRows(files, columns)
        need_datasets("text")
        return ParquetRows(files, columns)


class Texts:
    """``Examples`` over rows of text."""

    def __init__(self, rows: Rows, config: Any, chosen: Sequence[int]) -> None:
        self._rows, self._config, self._chosen = rows, config, chosen
        names = config.label_names or getattr(rows.features.get(config.truth_column), "names", None)
        by = f"column '{config.truth_column}'"
        self.classes = Classes({name: label for label, name in enumerate(names)}, by) if names else None

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> tuple[TextItem, Label | None]:
        row = self._rows[self._chosen[index]]
        item, label = self._item(row, index), None
        with suppress(InputError):  # ``label`` raises it, where a label is needed
            label = self._label(row, index)
        return item, label

    def label(self, index: int) -> Label:
        """The label column's value, or the accepted answers."""
        return self._label(self._rows[self._chosen[index]], index)

    def key(self, index: int) -> str:
        """``<path>:<split>[row]``."""
        return f"{self._config.path}:{self._config.split}[{self._chosen[index]}]"

    def size_hint(self, index: int) -> int:
        """Size of both texts in bytes; the texts are read for it."""
        return len(self._content(index))

    def digest(self, index: int) -> str:
        """SHA-256 of both texts."""
        return sha256(self._content(index))

    def _content(self, index: int) -> bytes:
        item = self._item(self._rows[self._chosen[index]], index)
        return json.dumps([item.text, item.pair]).encode()

    def _item(self, row: dict[str, Any], index: int) -> TextItem:
        def text(column: str) -> str:
            value = row.get(column)
            if not isinstance(value, str):
                raise InputError(f"column '{column}' holds no text", where=self.key(index), fix="set text_column")
            return value

        pair = self._config.pair_column
        return TextItem(text(self._config.text_column), None if pair is None else text(pair))

    def _label(self, row: dict[str, Any], index: int) -> Label:
        if self._config.truth_column not in self._rows.features:
            what = f"there is no column '{self._config.truth_column}'; the columns are {', '.join(self._rows.features)}"
            raise InputError(what, where=self._config.path, fix="set label_column or answer_column")
        value = row.get(self._config.truth_column)
        if self._config.answer_column is not None:
            return self._answer(value, row, index)
        if self._config.label_names:
            return self._named_label(value, index)
        if isinstance(value, str) and value.strip().isdecimal():  # values of CSV files are strings
            value = int(value)
        if not isinstance(value, int) or value < 0:
            raise InputError(
                f"column '{self._config.truth_column}' must hold integers of 0 or more, received {value!r}",
                where=self.key(index),
                fix="use a labelled split whose labels are the model's classes; words need label_names",
            )
        return value

    def _named_label(self, value: Any, index: int) -> int:
        names = self._config.label_names
        if value not in names:
            raise InputError(
                f"column '{self._config.truth_column}' holds {value!r}, and label_names are {', '.join(names)}",
                where=self.key(index),
                fix="add it to label_names, in the order of the model's outputs, or remove the row",
            )
        return int(names.index(value))

    def _answer(self, value: Any, row: dict[str, Any], index: int) -> Answers:
        context = self._item(row, index).pair or ""
        try:
            texts, starts = value["text"], value["answer_start"]
            if not texts and not starts:
                return Answers(0, 0, ())
            start, end = int(starts[0]), int(starts[0]) + len(texts[0])
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"column '{self._config.answer_column}' holds no answers",
                where=self.key(index),
                fix="store answers as {text: [...], answer_start: [...]}, with empty lists for no answer",
            ) from error
        if start < 0 or context[start:end] != texts[0] or not texts[0]:
            raise InputError(
                f"the context does not contain the answer {texts[0]!r} at character {start}",
                where=self.key(index),
                fix="correct answer_start",
            )
        return Answers(start, end, tuple(map(str, texts)))
