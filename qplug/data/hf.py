"""Data source of Hugging Face image data sets: a folder of parquet files, or a data set by name."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from qplug.core.component import Config, DataSource
from qplug.core.errors import InputError
from qplug.core.examples import Classes
from qplug.core.storage.hashing import sha256
from qplug.core.storage.plain_file import require_file
from qplug.data.image_files import decode
from qplug.data.loading import IMAGES, choose
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
        within = [folder] if folder is not None else _caches()
        if self.config.image_column not in rows.features:
            raise InputError(
                f"there is no column '{self.config.image_column}'; the columns are {', '.join(rows.features)}",
                where=self.config.path,
                fix="set image_column and label_column",
            )
        chosen = choose(len(rows), self.config.images, seed, f"{self.config.path}, split {self.config.split}")
        # Sorted: in the order of the draw, each image would read another row group.
        return HuggingFaceImages(rows, self.config, sorted(chosen), within)

    def _parquet(self, folder: Path) -> ParquetRows:
        files = files_in(folder, self.config.split, self.config.files)
        return ParquetRows(files, (self.config.image_column, self.config.label_column))

    def _named(self) -> Any:
        import datasets

        rows = named(self.config.path, self.config.split, self.config.files)
        column = self.config.image_column
        return rows.cast_column(column, datasets.Image(decode=False)) if column in rows.features else rows


def _caches() -> list[Path]:
    """The folders into which ``datasets`` downloads."""
    import datasets
    from huggingface_hub import constants

    return [Path(datasets.config.HF_DATASETS_CACHE), Path(constants.HF_HUB_CACHE)]


class HuggingFaceImages:
    """``Examples`` over rows whose images are ``{"bytes": …, "path": …}``.

    Args:
        rows: by index.
        config: of the source.
        chosen: the indices of the rows that were drawn.
        within: folders that must hold the files that rows name in place of bytes; relative paths start at the first.

    Attributes:
        classes: the names that the label column has; ``None`` if it has none.
    """

    def __init__(self, rows: Any, config: Any, chosen: Sequence[int], within: Sequence[Path]) -> None:
        self._rows, self._config, self._chosen, self._within = rows, config, chosen, within
        names = getattr(rows.features.get(config.label_column), "names", None)
        by = f"column '{config.label_column}'"
        self.classes = Classes({name: label for label, name in enumerate(names)}, by) if names else None

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> tuple[Image.Image, int | None]:
        row = self._rows[self._chosen[index]]
        label = row.get(self._config.label_column)
        labelled = isinstance(label, int) and label >= 0
        return decode(io.BytesIO(self._content(row, index)), self.key(index)), label if labelled else None

    def label(self, index: int) -> int:
        """The label column's value; raises ``InputError`` if there is none, or a negative one, as in test splits."""
        label = self._labels[self._chosen[index]]
        if label is None or label < 0:
            raise InputError(f"the image has no label ({label})", where=self.key(index), fix="use a labelled split")
        return int(label)

    @functools.cached_property
    def _labels(self) -> Sequence[int | None]:
        """The label column of every row, read without the images; raises ``InputError`` if it holds no integers."""
        name, features = self._config.label_column, self._rows.features
        if name not in features:
            what = f"there is no column '{name}'; the columns are {', '.join(features)}"
            raise InputError(what, where=self._config.path, fix="set label_column")
        if "int" not in str(getattr(features[name], "dtype", "")):
            what = f"column '{name}' must hold integers, received {features[name]}"
            raise InputError(what, where=self._config.path, fix="set label_column")
        column: Sequence[int | None] = (
            self._rows.column(name) if isinstance(self._rows, ParquetRows) else list(self._rows[name])
        )
        return column

    def key(self, index: int) -> str:
        """``<path>:<split>[row]``."""
        return f"{self._config.path}:{self._config.split}[{self._chosen[index]}]"

    def size_hint(self, index: int) -> int:
        """Length of the encoded image in bytes."""
        return len(self._content(self._rows[self._chosen[index]], index))

    def digest(self, index: int) -> str:
        """SHA-256 of the encoded image."""
        return sha256(self._content(self._rows[self._chosen[index]], index))

    def _content(self, row: dict[str, Any], index: int) -> bytes:
        image = row[self._config.image_column]
        content, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (None, None)
        if content is None and isinstance(path, str) and path:
            content = self._file(path, index)
        if not isinstance(content, bytes):
            raise InputError(
                f"column '{self._config.image_column}' holds no image", where=self.key(index), fix="set image_column"
            )
        return content

    def _file(self, path: str, index: int) -> bytes:
        """The content of a file that a row names; a data set may not name files outside its own folder."""
        found = (self._within[0] / path).resolve()
        if not any(found.is_relative_to(folder.resolve()) for folder in self._within):
            raise InputError(
                f"the row names a file outside the data set's folder: {path}",
                where=self.key(index),
                fix="store the images' bytes in the column, or the files in the folder",
            )
        require_file(found, "image")
        try:
            return found.read_bytes()
        except OSError as error:
            raise InputError(f"the image cannot be read: {error.strerror}", where=str(found)) from error
