"""Which files are images, and that decoding never hangs, runs a program or prints PIL's own warnings."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import pytest
from PIL import Image

from qplug.core.errors import InputError
from qplug.data.image_files import decode, suffixes


def test_suffixes_are_those_that_pil_decodes() -> None:
    assert {".jpg", ".jfif", ".jpe", ".png", ".webp", ".tiff", ".jp2", ".tga"} <= suffixes()
    assert not {".h5", ".eps", ".mpg", ".pdf", ".npy", ".txt", ""} & suffixes()


@pytest.mark.parametrize("factor", [0.9, 3])
def test_a_huge_image_is_refused_without_a_warning_of_pil(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(10_000 * 0.9 / factor))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        if factor < 1:
            assert decode(tmp_path / "huge.png", "huge.png").size == (100, 100)
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_999)
        with pytest.raises(InputError, match=r"has 10,000 pixels, and at most [39],[09][09][09] are") as error:
            decode(tmp_path / "huge.png", "huge.png")
    assert error.value.where == "huge.png"


@pytest.mark.parametrize("content", [b"\x89PNG\r\n", b"GIF89a", b"\xff\xd8\xff\xe0", b"no image", b"II*\0\x08\0\0\0"])
def test_messages_name_the_image_and_no_object_of_python(content: bytes) -> None:
    with pytest.raises(InputError, match=r"cannot be decoded") as error:
        decode(io.BytesIO(content), "set:test[1]")
    assert error.value.where == "set:test[1]"
    assert " at 0x" not in str(error.value)


def test_a_program_in_an_image_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("ran"))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(InputError, match="no format that PIL decodes"):
        decode(tmp_path / "a.png", "a.png")
