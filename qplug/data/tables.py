"""Tables of rows with named columns: parquet files, JSON lines, CSV, TSV, or a Hugging Face data set by name."""

from __future__ import annotations

import bisect
import csv
import itertools
import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from qplug.core.errors import InputError
from qplug.core.storage.plain_file import refuse_special, require_file
from qplug.core.text import listed
from qplug.core.types import Extra
from qplug.data.class_folders import passed_over

LINES = (".jsonl", ".json")
TABLES = (".csv", ".tsv")


class Rows(Protocol):
    """Rows by index, each a dict by column."""

    features: Any
    """Column → its type; ``None`` if the files do not define types."""

    def __len__(self) -> int:
        """Number of rows."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The row at ``index``."""


DATASETS = Extra("datasets", "pip install 'qplug[hf]'")


def need_datasets(source: str) -> None:
    """Raise ``InputError`` if the package ``datasets`` is missing, which reads parquet and loads data sets by name."""
    if DATASETS.missing:
        raise InputError(f"data source '{source}' needs the package '{DATASETS.module}'", fix=DATASETS.install)


def folder_of(path: str) -> Path | None:
    """``path`` as an existing folder, or ``None`` if it is the name of a data set; raises ``InputError``."""
    folder = Path(path).expanduser()
    if refuse_special(folder, "folder") is not None:
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", path):
        raise InputError("the folder does not exist", where=str(folder))
    return None


def files_in(folder: Path, split: str, pattern: str | None, suffixes: Collection[str] = (".parquet",)) -> list[Path]:
    """The files of a split: those that match ``pattern``, or whose path contains the split's name as a word.

    Hidden folders and files are passed over. Raises ``InputError`` if there are none, if they have several formats, or
    if one is no plain file.
    """
    if not folder.is_dir():
        raise InputError("is a file, not a folder", where=str(folder), fix="set path to its folder, and files to it")
    found = sorted(path for path in folder.rglob("*") if path.suffix in suffixes)
    every = [path for path in found if not any(map(passed_over, path.relative_to(folder).parts)) and not path.is_dir()]
    if pattern is not None:
        files = [path for path in every if path.relative_to(folder).match(pattern)]
        wanted = f"matches {pattern}"
    else:
        word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(split)}(?![A-Za-z0-9])")
        files = [path for path in every if word.search(path.relative_to(folder).as_posix())]
        wanted = f"has '{split}' in its path"
    kinds = " or ".join(suffix.removeprefix(".") for suffix in suffixes)
    if not files:
        names = listed((path.relative_to(folder).as_posix() for path in every), 5) or "none"
        raise InputError(
            f"no {kinds} file in it {wanted}; there are: {names}", where=str(folder), fix="set split or files"
        )
    if len({path.suffix for path in files}) > 1:
        names = listed((path.relative_to(folder).as_posix() for path in files), 5)
        raise InputError(f"the files of the split have several formats: {names}", where=str(folder), fix="set files")
    for path in files:
        require_file(path)
    return files


def named(path: str, split: str, files: str | None) -> Any:
    """The data set ``path``, from the cache of ``datasets`` or downloaded; raises ``InputError``."""
    import datasets

    try:
        return datasets.load_dataset(path, split=split, data_files=files)
    except Exception as error:  # the hub, the network and a data set's own files raise different types
        raise InputError(
            f"the folder does not exist, and no data set of this name could be loaded ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]})",
            where=path,
            fix="set path to a folder of its files, or load the data set once while online",
        ) from error


class ParquetRows:
    """Some columns of the rows of parquet files; only the last row group is held in memory."""

    def __init__(self, files: Sequence[Path], columns: Sequence[str]) -> None:
        import datasets
        from pyarrow import parquet

        opened: list[tuple[Path, Any]] = []
        for path in files:
            with _parquet_errors(path):
                file = parquet.ParquetFile(path, memory_map=True, page_checksum_verification=True)
                if not opened:
                    self.features = datasets.Features.from_arrow_schema(file.schema_arrow)
                _check_rows(file.metadata)
                opened.append((path, file))
        self._columns = [name for name in columns if name in self.features]
        self._groups = [(path, file, group) for path, file in opened for group in range(file.metadata.num_row_groups)]
        sizes = [file.metadata.row_group(group).num_rows for _, file, group in self._groups]
        self._ends = list(itertools.accumulate(sizes))
        self._last_group: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        group = bisect.bisect_right(self._ends, index)
        if self._last_group[0] != group:
            self._last_group = (-1, None)  # free the old row group first: two would double the memory
            self._last_group = (group, self._read(group, self._columns))
        start = self._ends[group - 1] if group else 0
        with _parquet_errors(self._groups[group][0]):
            return {name: self._last_group[1][name][index - start].as_py() for name in self._columns}

    def column(self, name: str) -> list[Any]:
        """The values of one column, without reading the others; raises ``InputError`` for a damaged file."""
        return [value for group in range(len(self._groups)) for value in self._read(group, [name])[name].to_pylist()]

    def _read(self, group: int, columns: list[str]) -> Any:
        path, file, number = self._groups[group]
        with _parquet_errors(path):
            return file.read_row_group(number, columns=columns)


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises into ``InputError`` with its path."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError, UnicodeDecodeError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        fix = "replace the file: it is damaged, or no parquet file"
        raise InputError(f"not readable as parquet: {reason}", where=str(path), fix=fix) from error


def _check_rows(metadata: Any) -> None:
    """Raise ``OSError`` if a damaged footer has numbers of rows that disagree."""
    sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    if min(sizes, default=0) < 0 or sum(sizes) != metadata.num_rows:
        raise OSError(f"its row groups have {sizes[:5]} rows, and the file has {metadata.num_rows}")


class PlainRows:
    """Some columns of the rows of JSON lines, CSV or TSV files, in memory; values of the latter two are strings.

    Raises ``InputError``, with the line, for a file that cannot be read.
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
                        raise ValueError(f"expected one object per line, received {type(row).__name__}")
                    yield row
        except ValueError as error:  # invalid JSON or UTF-8
            raise InputError(f"not readable as JSON lines: {error}", where=f"{path}:{number}") from error


def _table(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:  # MRPC's files have a byte order mark
        if path.suffix == ".tsv":  # GLUE's files have quotation marks in their texts, and quote nothing
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
        else:
            reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise csv.Error(f"expected {len(reader.fieldnames or ())} values")
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            kind = path.suffix.removeprefix(".").upper()
            raise InputError(f"not readable as {kind}: {error}", where=f"{path}:{reader.line_num}") from error
