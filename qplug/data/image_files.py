"""Which files are images, and their decoding. Importing this module does not import torch."""

from __future__ import annotations

import functools
import re
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING

from qplug.core.errors import InputError
from qplug.core.storage.plain_file import require_file

if TYPE_CHECKING:
    from PIL import Image

NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that PIL recognizes and does not decode itself: it would need a handler, or run another program."""


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that are decoded, by PIL's names."""
    from PIL import Image

    Image.init()
    return tuple(name for name in Image.ID if name not in NOT_DECODED)


@functools.cache
def suffixes() -> frozenset[str]:
    """The suffixes of these formats in lower case, such as ``.jpeg`` and ``.jfif``; they depend on PIL's build."""
    from PIL import Image

    known = formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def decode(source: Path | IO[bytes], where: str) -> Image.Image:
    """Decode an image completely.

    Raises ``InputError`` naming ``where`` for a truncated, corrupt, huge or other file, and for what is no plain file.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, Path):
        require_file(source, "image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=formats()) as image:
                image.load()
                decoded = image.copy()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels = re.search(r"\d+", str(error))
        raise InputError(
            f"the image has {int(pixels[0]) if pixels else 0:,} pixels, and at most {Image.MAX_IMAGE_PIXELS:,} are "
            "decoded: the image could be a decompression bomb",
            where=where,
            fix="resize or remove it",
        ) from error
    except UnidentifiedImageError as error:
        what = "the image cannot be decoded: it has no format that PIL decodes"
        raise InputError(what, where=where, fix="replace or remove it") from error
    except Exception as error:  # decoders raise many types for a broken file: OSError, SyntaxError, struct.error, …
        reason = " ".join(re.sub(r"<[^<>]* object at 0x[0-9a-fA-F]+>", "the file", str(error)).split())
        what = f"the image cannot be decoded: {reason or type(error).__name__}"
        raise InputError(what, where=where, fix="replace or remove it") from error
    if decoded.mode.startswith(("I", "F")):  # PIL would clip these to 8 bits without a warning
        raise InputError(
            f"the image has more than 8 bits per channel (PIL mode {decoded.mode})",
            where=where,
            fix="convert it to 8 bits per channel",
        )
    return decoded
