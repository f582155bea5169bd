"""What is no plain file is refused before it is opened, by every reader."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from qplug.core.errors import InputError
from qplug.core.storage.hashing import file_digest
from qplug.core.storage.plain_file import refuse_special, require_file
from qplug.data.class_map import read_class_map
from qplug.data.image_files import decode
from qplug.models import checkpoint_file
from qplug.recipe import load_recipe

READERS: dict[str, Callable[[Path], object]] = {
    "digest": file_digest,
    "class map": read_class_map,
    "image": lambda path: decode(path, str(path)),
    "checkpoint": checkpoint_file.read,
    "recipe": load_recipe,
}


@pytest.fixture(params=["pipe", "device", "link to a device", "socket", "dangling link", "link to itself"])
def special(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A path, and what an error says of it."""
    path = tmp_path / "file.png"
    if request.param == "pipe":
        os.mkfifo(path)
        return path, r"is a pipe \(FIFO\), not a file"
    if request.param == "socket":
        monkeypatch.chdir(tmp_path)  # the path of a socket may have about 100 characters
        with socket.socket(socket.AF_UNIX) as bound:  # its file stays
            bound.bind(path.name)
        return path, "is a socket, not a file"
    if request.param == "device":
        return Path("/dev/zero"), "is a character device, not a file"
    targets = {"link to a device": "/dev/zero", "dangling link": "nowhere.png", "link to itself": path.name}
    path.symlink_to(targets[request.param])
    messages = {"link to a device": "is a character device", "dangling link": "does not exist: nowhere.png"}
    return path, messages.get(request.param, "cannot be read: Too many levels of symbolic links")


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_it_by_name(reader: str, special: tuple[Path, str]) -> None:
    path, message = special
    with pytest.raises(InputError, match=message) as error:
        READERS[reader](path)
    assert error.value.where == str(path)


def test_files_folders_and_names_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to("a")
    assert require_file(tmp_path / "a").st_size == require_file(tmp_path / "b").st_size == 3
    with pytest.raises(InputError, match="is a folder, not a file"):
        require_file(tmp_path)
    with pytest.raises(InputError, match="the class map does not exist"):
        require_file(tmp_path / "c", "class map")
    assert refuse_special(tmp_path / "c") is None
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(InputError, match=r"cannot be read: (File name too long|embedded null)"):
            require_file(tmp_path / name)


def test_a_file_without_permission_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"abc")

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    for read in (file_digest, read_class_map):
        with pytest.raises(InputError, match="cannot be read: Permission denied"):
            read(tmp_path / "a.png")
    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(InputError, match="the file cannot be read: Permission denied"):
        require_file(tmp_path / "a.png")
