"""Data source of Hugging Face image data sets: a folder of parquet files, or a data set by name."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from qplug.core.component import Config, DataSource
from qplug.core.errors import InputError
from qplug.core.storage.hashing import sha256
from qplug.data.loading import IMAGES, choose, decode
from qplug.data.tables import DATASETS, ParquetRows, files_in, folder_of, named, need_datasets

if TYPE_CHECKING:
    from PIL import Image


class HuggingFace(DataSource):
    """Images of a Hugging Face data set.

    A folder is read in place, one row group at a time, without a copy or cache. Any other path is the name of a data
    set, which the ``datasets`` library loads from its own cache or downloads.
    """

    needs = (DATASETS,)

    class Config(Config):
        """``data.*: {source: hf, path: …/cifar10, split: test}``."""

        source: Literal["hf"]
        path: str = Field(min_length=1, description="a folder of parquet files, or a data set's name")
        split: str = Field(min_length=1, description="the split; in a folder, the files with this word in their path")
        image_column: str = Field(default="image", description="the column that holds the images")
        label_column: str = Field(default="label", description="the column that holds the labels, as integers")
        files: str | None = Field(
            default=None, min_length=1, description="glob over the folder's files, in place of the split's name"
        )
        images: int | None = Field(default=None, ge=1, description=IMAGES)

    def open(self, seed: int) -> HuggingFaceImages:
        """Draw the images; raises ``InputError`` for invalid files, columns or numbers."""
        need_datasets("hf")
        folder = folder_of(self.config.path)
        rows = self._named() if folder is None else self._parquet(folder)
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
                f"column '{self.config.label_column}' must hold integers, received {label}", where=self.config.path
            )
        chosen = choose(len(rows), self.config.images, seed, f"{self.config.path}, split {self.config.split}")
        # Sorted: in the order of the draw, each image would read another row group.
        return HuggingFaceImages(rows, self.config, sorted(chosen))

    def _parquet(self, folder: Path) -> ParquetRows:
        files = files_in(folder, self.config.split, self.config.files)
        return ParquetRows(files, (self.config.image_column, self.config.label_column))

    def _named(self) -> Any:
        import datasets

        rows = named(self.config.path, self.config.split, self.config.files)
        column = self.config.image_column
        return rows.cast_column(column, datasets.Image(decode=False)) if column in rows.features else rows


class HuggingFaceImages:
    """``Examples`` over rows whose images are ``{"bytes": …, "path": …}``."""

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
