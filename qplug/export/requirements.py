"""Packages that exports need and that not every installation has. Importing this module does not import them."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

from qplug.core.errors import InputError
from qplug.core.types import Extra

INSTALL = "pip install 'qplug[export]'"
"""Installs every package of this module."""
ONNX, ONNX_IR, ONNXRUNTIME, ONNXSCRIPT = (
    Extra(name, INSTALL) for name in ("onnx", "onnx_ir", "onnxruntime", "onnxscript")
)


def check_installed(user: str, needs: Iterable[Extra]) -> None:
    """Check that the packages of ``needs`` are installed.

    Args:
        user: format, runtime or command that needs them, as the error names it.
        needs: the packages.

    Raises:
        InputError: a package is missing.
    """
    missing = [extra for extra in dict.fromkeys(needs) if extra.missing]
    if missing:
        names, commands = (dict.fromkeys(getattr(extra, key) for extra in missing) for key in ("module", "install"))
        raise InputError(
            f"{user} needs packages that are not installed: {', '.join(names)}", where=user, fix=" && ".join(commands)
        )


def imported(path: str) -> Any:
    """The object at ``module:name``."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
