"""Class maps: every line is checked, and the built-in one is timm's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qplug.core.errors import InputError
from qplug.data.class_map import class_map, imagenet_synsets, read_class_map


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"cat\ncat\n", "listed twice"), (b"cat\n\ndog\n", "empty line"), (b"\xff\xfe", "UTF-8")],
)
def test_broken_class_map_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "map.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_class_map(tmp_path / "map.txt")


@pytest.mark.parametrize(
    "label", [f"1{'0' * 23}", "-1", "+1", "1.5", "1e3", "true", "False", "nan", "2147483648", "0x1", ".5", "٣"]
)
def test_a_label_that_cannot_be_is_refused_with_its_line(tmp_path: Path, label: str) -> None:
    (tmp_path / "map.txt").write_text(f"ant 0\nbee {label}\ncat 2\n", encoding="utf-8")
    message = f"expected a label of 0 … 2147483647, received {label[:27]}"
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read_class_map(tmp_path / "map.txt", {"ant", "bee", "cat"})
    assert error.value.where == f"{tmp_path / 'map.txt'}:2"


def test_numbers_may_be_parts_of_names(tmp_path: Path) -> None:
    path = tmp_path / "map.txt"
    path.write_text("tile 2\ntile 1\ntile 1.5\n")
    assert read_class_map(path, {"tile 1", "tile 2"}) == {"tile 2": 0, "tile 1": 1, "tile 1.5": 2}
    path.write_text("tench 0\ngreat white shark 2\n")
    assert read_class_map(path, {"great white shark"}) == {"tench": 0, "great white shark": 2}
    path.write_text("tile 2\ntile\n")
    assert read_class_map(path) == {"tile 2": 0, "tile": 1}


def test_files_of_spreadsheets_and_odd_names_are_read(tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_bytes("\ufeffant\r\nbee\u2028s\r\n\r\n".encode())
    assert read_class_map(tmp_path / "map.txt") == {"ant": 0, "bee\u2028s": 1}


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "map.txt").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(InputError, match="at most 16 MiB, received 1024 MiB"):
        read_class_map(tmp_path / "map.txt")


def test_imagenet_is_the_list_of_timm() -> None:
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    assert list(imagenet_synsets()) == [info.index_to_label_name(index) for index in range(1000)]
    assert class_map("imagenet")["n15075141"] == 999
