"""Hugging Face data: parquet files read in place, without a copy on disk."""

from __future__ import annotations

import importlib.util
import io
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qplug.core.errors import InputError
from qplug.data.hf import HuggingFace, HuggingFaceImages
from qplug.data.loading import check_disjoint
from qplug.data.tables import ParquetRows

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def source(path: Path | str, seed: int = 0, split: str = "test", **values: Any) -> HuggingFaceImages:
    return HuggingFace(HuggingFace.Config(source="hf", path=str(path), split=split, **values)).open(seed)


def write(path: Path, count: int, offset: int = 0, **columns: list[Any]) -> None:
    images = []
    for index in range(count):
        stream = io.BytesIO()
        Image.new("RGB", (4, 4), (index + offset, 0, 0)).save(stream, "PNG")
        images.append({"bytes": stream.getvalue(), "path": None})
    table = pyarrow.table({"image": images, "label": [index % 3 for index in range(count)], **columns})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "set/data/train-00000-of-00001.parquet", 6)
    write(tmp_path / "set/data/test-00000-of-00002.parquet", 10, 100)
    write(tmp_path / "set/data/test-00001-of-00002.parquet", 5, 200)
    return tmp_path / "set"


def test_rows_of_all_files_of_a_split_in_order(folder: Path) -> None:
    images = source(folder)
    assert len(images) == 15
    assert [images[i][0].getpixel((0, 0))[0] for i in range(15)] == [*range(100, 110), *range(200, 205)]
    assert [images[i][1] for i in range(10)] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert [images.label(i) for i in range(15)] == [images[i][1] for i in range(15)]
    assert images.key(14) == f"{folder}:test[14]"


def test_files_may_be_selected_by_a_pattern(folder: Path) -> None:
    assert len(source(folder, files="test-00001*")) == 5
    with pytest.raises(
        InputError, match=r"no parquet file in it matches x\*; there are: data/test-00000-of-00002.parquet"
    ):
        source(folder, files="x*")


def test_splits_do_not_overlap_and_the_draw_depends_on_the_seed(folder: Path) -> None:
    check_disjoint(source(folder, split="train"), source(folder))
    with pytest.raises(InputError, match="share 3 examples"):
        check_disjoint(source(folder, images=3), source(folder))
    keys = [[images.key(i) for i in range(6)] for images in (source(folder, s, images=6) for s in (0, 0, 1))]
    assert keys[0] == keys[1] != keys[2]


def test_invalid_splits_columns_and_numbers_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="no parquet file in it has 'validation' in its path"):
        source(folder, split="validation")
    with pytest.raises(InputError, match="no column 'img'; the columns are image, label"):
        source(folder, image_column="img")
    with pytest.raises(InputError, match="must hold integers"):
        source(folder, label_column="image").label(0)
    with pytest.raises(InputError, match="no column 'class'; the columns are image, label"):
        source(folder, label_column="class").label(0)
    with pytest.raises(InputError, match="expected 1 … 15 images, received 16"):
        source(folder, images=16)
    with pytest.raises(InputError, match="does not exist"):
        source(folder / "nowhere")


def test_images_and_labels_that_are_missing_or_broken_are_named(tmp_path: Path) -> None:
    write(tmp_path / "test.parquet", 3, label=[0, -1, 2])
    images = source(tmp_path)
    assert [images[index][1] for index in range(3)] == [0, None, 2]  # calibration needs no label
    with pytest.raises(InputError, match=r"test\[1\]: the image has no label"):
        images.label(1)
    write(tmp_path / "test.parquet", 1, image=[{"bytes": b"\x89PNG\r\n", "path": None}])
    with pytest.raises(InputError, match=r"test\[0\]: the image cannot be decoded"):
        source(tmp_path)[0]
    (tmp_path / "test.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(InputError, match="not readable as parquet"):
        source(tmp_path)


def test_a_damaged_page_is_an_error_with_the_name_of_the_file(tmp_path: Path) -> None:
    write(tmp_path / "test.parquet", 8)
    good = (tmp_path / "test.parquet").read_bytes()
    refused = []
    for place in range(4, len(good) // 2, 31):
        (tmp_path / "test.parquet").write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        try:
            images = source(tmp_path)
            _ = [(images[index], images.label(index)) for index in range(len(images))]
        except InputError as error:
            refused.append(error)
    assert len(refused) > 10
    assert all("test.parquet" in error.where or ":test[" in error.where for error in refused)
    assert not any("object at 0x" in str(error) for error in refused)


def test_a_row_may_only_name_files_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    inside, outside = folder / "images" / "0.png", tmp_path / "0.png"
    for path in (inside, outside):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    (folder / "images" / "out.png").symlink_to(outside)
    names = [
        "images/0.png",
        str(inside),
        "../0.png",
        str(outside),
        "images/out.png",
        "/dev/zero",
        "images",
        "images/1.png",
    ]
    write(folder / "test.parquet", len(names), image=[{"bytes": None, "path": name} for name in names])
    images = source(folder)
    assert [images[index][0].size for index in range(2)] == [(4, 4), (4, 4)]
    for index in range(2, 6):
        with pytest.raises(InputError, match=rf"test\[{index}\]: the row names a file outside the data set's folder"):
            images[index]
    with pytest.raises(InputError, match="images: is a folder, not a file"):
        images[6]
    with pytest.raises(InputError, match=r"1\.png: the image does not exist"):
        images[7]


def test_hidden_files_are_no_part_of_a_split_and_pipes_are_refused(folder: Path) -> None:
    for name in (".ipynb_checkpoints/test-checkpoint.parquet", "__MACOSX/._test.parquet", "data/._test-0.parquet"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no parquet")
    assert len(source(folder)) == 15
    os.mkfifo(folder / "data" / "test-2.parquet")
    with pytest.raises(InputError, match=r"test-2\.parquet: is a pipe"):
        source(folder)


def test_labels_are_read_without_the_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, read = source(folder), []
    monkeypatch.setattr(ParquetRows, "__getitem__", lambda rows, index: pytest.fail("read a row"))
    read += [images.label(index) for index in range(len(images))]
    assert read[:4] == [0, 1, 2, 0]


def test_names_of_the_label_column_are_the_classes(tmp_path: Path) -> None:
    import datasets

    label = datasets.ClassLabel(names=["cat", "dog", "owl"])
    features = datasets.Features({"image": datasets.Image(), "label": label})
    rows = {"image": [Image.new("RGB", (4, 4)) for _ in range(2)], "label": [2, 0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "test.parquet")
    images = source(tmp_path)
    assert images.classes is not None
    assert images.classes.labels == {"cat": 0, "dog": 1, "owl": 2}
    assert images.classes.by == "column 'label'"
    assert source(tmp_path, label_column="other").classes is None


def test_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"qplug\[hf\]"):
        source(folder)


def test_real_parquet(shared: Path) -> None:
    images = source(shared / "data/cifar10", split="test", images=20)
    image, label = images[0]
    assert (image.size, image.mode) == ((32, 32), "RGB")
    assert {images[i][1] for i in range(20)} <= set(range(10))
    assert 0 <= label < 10
