"""Hugging Face data: a folder of parquet files read in place, or a data set by name."""

from __future__ import annotations

import bisect
import importlib.util
import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from qplug.data import choose, decode, sha256
from qplug.errors import InputError
from qplug.techniques import Config, DataSource

if TYPE_CHECKING:
    from PIL import Image


class HuggingFace(DataSource):
    """Images of a Hugging Face data set.

    A folder is read in place, one row group at a time: nothing is copied, cached or fetched. Anything else is taken as
    the name of a data set, which the ``datasets`` library finds in its own cache or fetches.
    """

    class Config(Config):
        """``data.*: {source: hf, path: …/cifar10, split: test}``."""

        source: Literal["hf"]
        path: str = Field(min_length=1, description="a folder of parquet files, or a data set's name")
        split: str = Field(min_length=1, description="the split; in a folder, the files with this word in their path")
        image_column: str = Field(default="image", description="the column that holds the images")
        label_column: str = Field(default="label", description="the column that holds the labels, as integers")
        files: str | None = Field(
            default=None, min_length=1, description="glob over the folder's files, instead of looking for the split"
        )
        images: int | None = Field(
            default=None,
            ge=1,
            description="number of images, drawn by the recipe's seed (to evaluate, by no seed); all if unset",
        )

    def open(self, seed: int) -> HuggingFaceImages:
        """Choose the images; raises ``InputError`` for files, columns or numbers that do not fit."""
        if importlib.util.find_spec("datasets") is None:
            raise InputError("data source 'hf' needs the package 'datasets'", fix="pip install qplug[hf]")
        folder = Path(self.config.path).expanduser()
        named = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", self.config.path)
        if not folder.exists() and not named:
            raise InputError("the folder does not exist", where=str(folder))
        rows = self._parquet(folder) if folder.exists() else self._named()
        label = rows.features.get(self.config.label_column)
        missing = [c for c in (self.config.image_column, self.config.label_column) if c not in rows.features]
        if missing:
            raise InputError(
                f"there is no column '{missing[0]}'; the columns are {', '.join(rows.features)}",
                where=self.config.path,
                fix="set image_column and label_column",
            )
        if "int" not in str(getattr(label, "dtype", "")):
            raise InputError(
                f"column '{self.config.label_column}' must hold integers, not {label}", where=self.config.path
            )
        chosen = choose(len(rows), self.config.images, seed, f"{self.config.path}, split {self.config.split}")
        # In the order of the rows: in the order of the draw, every image would read another row group.
        return HuggingFaceImages(rows, self.config, sorted(chosen))

    def _parquet(self, folder: Path) -> ParquetRows:
        if not folder.is_dir():
            raise InputError("is a file, not a folder", where=str(folder), fix="give the folder, and the file as files")
        every = sorted(path for path in folder.rglob("*.parquet") if path.is_file())
        if self.config.files is not None:
            files = [path for path in every if path.relative_to(folder).match(self.config.files)]
            wanted = f"matches {self.config.files}"
        else:
            word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(self.config.split)}(?![A-Za-z0-9])")
            files = [path for path in every if word.search(path.relative_to(folder).as_posix())]
            wanted = f"has '{self.config.split}' in its path"
        if not files:
            there = ", ".join(path.relative_to(folder).as_posix() for path in every[:5]) or "none"
            raise InputError(
                f"no parquet file in it {wanted}; there are: {there}", where=str(folder), fix="set split or files"
            )
        return ParquetRows(files, (self.config.image_column, self.config.label_column))

    def _named(self) -> Any:
        import datasets

        try:
            rows = datasets.load_dataset(self.config.path, split=self.config.split, data_files=self.config.files)
        except Exception as error:  # the hub, the network and a data set's own files each fail in their own way
            raise InputError(
                f"is no folder, and no data set of this name could be loaded ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:300]})",
                where=self.config.path,
                fix="give the path of a folder of parquet files, or fetch the data set once while online",
            ) from error
        column = self.config.image_column
        return rows.cast_column(column, datasets.Image(decode=False)) if column in rows.features else rows


class ParquetRows:
    """Rows of parquet files by index, of two columns; keeps the one row group that was read last."""

    def __init__(self, files: Sequence[Path], columns: tuple[str, str]) -> None:
        import datasets
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]

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


class HuggingFaceImages:
    """An ``ImageSet`` over rows whose images are ``{"bytes": …, "path": …}``."""

    def __init__(self, rows: Any, config: Any, chosen: Sequence[int]) -> None:
        self._rows, self._config, self._chosen = rows, config, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        row = self._rows[self._chosen[index]]
        label = self._label(row, index)
        return decode(io.BytesIO(self._content(row, index)), self.key(index)), label

    def label(self, index: int) -> int:
        """The label column's value."""
        return self._label(self._rows[self._chosen[index]], index)

    def key(self, index: int) -> str:
        """``<path>:<split>[row]``."""
        return f"{self._config.path}:{self._config.split}[{self._chosen[index]}]"

    def size_hint(self, index: int) -> int:
        """Length of the encoded image in bytes."""
        return len(self._content(self._rows[self._chosen[index]], index))

    def digest(self, index: int) -> str:
        """SHA-256 of the encoded image."""
        return sha256(self._content(self._rows[self._chosen[index]], index))

    def _label(self, row: dict[str, Any], index: int) -> int:
        label = row[self._config.label_column]
        if label is None or label < 0:
            raise InputError(f"the image has no label ({label})", where=self.key(index), fix="use a labelled split")
        return int(label)

    def _content(self, row: dict[str, Any], index: int) -> bytes:
        image = row[self._config.image_column]
        content = image.get("bytes") if isinstance(image, dict) else None
        if content is None and isinstance(image, dict) and image.get("path") and Path(image["path"]).is_file():
            content = Path(image["path"]).read_bytes()
        if not isinstance(content, bytes):
            raise InputError(
                f"column '{self._config.image_column}' holds no image", where=self.key(index), fix="set image_column"
            )
        return content
