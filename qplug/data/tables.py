"""Rows with named columns: parquet files read in place, JSON lines, CSV, or a Hugging Face data set by its name."""

from __future__ import annotations

import bisect
import csv
import itertools
import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from qplug.core.errors import InputError
from qplug.core.types import Extra

LINES = (".jsonl", ".json")
TABLES = (".csv",)


class Rows(Protocol):
    """Rows by index, each a dict of its columns."""

    features: Any
    """Column → its type; ``None`` where the files do not say."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One row."""


DATASETS = Extra("datasets", "pip install 'qplug[hf]'")


def need_datasets(source: str) -> None:
    """Raises ``InputError`` where the package that reads parquet and knows data sets by name is missing."""
    if DATASETS.missing:
        raise InputError(f"data source '{source}' needs the package '{DATASETS.module}'", fix=DATASETS.install)


def folder_of(path: str) -> Path | None:
    """The folder that ``path`` is, or ``None`` where it is the name of a data set; raises ``InputError``."""
    folder = Path(path).expanduser()
    if folder.exists():
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", path):
        raise InputError("the folder does not exist", where=str(folder))
    return None


def files_in(folder: Path, split: str, pattern: str | None, suffixes: Collection[str] = (".parquet",)) -> list[Path]:
    """The files of a split: those that ``pattern`` matches, or that have the split's name as a word in their path.

    Raises ``InputError`` where there are none, or files of several formats.
    """
    if not folder.is_dir():
        raise InputError("is a file, not a folder", where=str(folder), fix="give the folder, and the file as files")
    every = sorted(path for path in folder.rglob("*") if path.suffix in suffixes and path.is_file())
    if pattern is not None:
        files = [path for path in every if path.relative_to(folder).match(pattern)]
        wanted = f"matches {pattern}"
    else:
        word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(split)}(?![A-Za-z0-9])")
        files = [path for path in every if word.search(path.relative_to(folder).as_posix())]
        wanted = f"has '{split}' in its path"
    kinds = " or ".join(suffix.removeprefix(".") for suffix in suffixes)
    if not files:
        there = ", ".join(path.relative_to(folder).as_posix() for path in every[:5]) or "none"
        raise InputError(
            f"no {kinds} file in it {wanted}; there are: {there}", where=str(folder), fix="set split or files"
        )
    if len({path.suffix for path in files}) > 1:
        some = ", ".join(path.relative_to(folder).as_posix() for path in files[:5])
        raise InputError(f"several formats make one split: {some}", where=str(folder), fix="set files")
    return files


def named(path: str, split: str, files: str | None) -> Any:
    """The data set of that name, from ``datasets``' cache or fetched; raises ``InputError``."""
    import datasets

    try:
        return datasets.load_dataset(path, split=split, data_files=files)
    except Exception as error:  # the hub, the network and a data set's own files each fail in their own way
        raise InputError(
            f"is no folder, and no data set of this name could be loaded ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]})",
            where=path,
            fix="give the path of a folder of its files, or fetch the data set once while online",
        ) from error


class ParquetRows:
    """Rows of parquet files by index, of some columns; keeps the one row group that was read last."""

    def __init__(self, files: Sequence[Path], columns: Sequence[str]) -> None:
        import datasets
        from pyarrow import ArrowException, parquet

        try:
            self._files = [parquet.ParquetFile(path, memory_map=True) for path in files]
            self.features = datasets.Features.from_arrow_schema(self._files[0].schema_arrow)
        except (ArrowException, OSError) as error:
            where = ", ".join(str(path) for path in files)
            raise InputError(f"not readable as parquet: {str(error).splitlines()[0]}", where=where) from error
        self._columns = list(columns)
        self._groups = [(file, group) for file in self._files for group in range(file.metadata.num_row_groups)]
        sizes = [file.metadata.row_group(group).num_rows for file, group in self._groups]
        self._ends = list(itertools.accumulate(sizes))
        self._held: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        group = bisect.bisect_right(self._ends, index)
        if self._held[0] != group:
            file, number = self._groups[group]
            self._held = (-1, None)  # let go of the old one first: two would double the memory
            self._held = (group, file.read_row_group(number, columns=self._columns))
        start = self._ends[group - 1] if group else 0
        return {name: self._held[1][name][index - start].as_py() for name in self._columns}


class PlainRows:
    """Rows of JSON lines or CSV files, of some columns, held in memory; values of a CSV file are strings.

    Raises ``InputError`` for a file that cannot be read, with the line.
    """

    def __init__(self, files: Sequence[Path], columns: Sequence[str]) -> None:
        self.features: dict[str, None] = {}
        self._rows: list[dict[str, Any]] = []
        for path in files:
            for row in _lines(path) if path.suffix in LINES else _table(path):
                self.features |= dict.fromkeys(row)
                self._rows.append({name: row[name] for name in columns if name in row})

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[index]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        number = 0
        try:
            for line in file:
                number += 1
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"expected an object a line, received {type(row).__name__}")
                    yield row
        except ValueError as error:  # of JSON or of UTF-8
            raise InputError(f"not readable as JSON lines: {error}", where=f"{path}:{number}") from error


def _table(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise csv.Error(f"expected {len(reader.fieldnames or ())} values")
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"not readable as CSV: {error}", where=f"{path}:{reader.line_num}") from error
