"""Reading of checkpoint files: which of a file's states is the model's, without running pickled code."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qplug.core.errors import InputError
from qplug.core.storage.plain_file import require_file
from qplug.core.text import listed

PREFERRED = ("state_dict_ema", "model_ema", "ema", "teacher", "state_dict", "model")
"""Entries that hold a state, the preferred first. timm has the same order, without ``ema`` and DINO's ``teacher``."""
DEPTH = 3
LARGEST_HEADER = 100 * 2**20
"""Largest header of a safetensors file in bytes, as its authors define it."""


def read(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict of a safetensors file or of a torch file, and notes on what was chosen.

    A torch file may hold its state under a key such as ``model``. Of several states the first of ``PREFERRED`` counts.

    Raises:
        InputError: the file is missing or broken, holds objects whose loading could run code, holds no state or several
            that no name tells apart, or names a tensor twice.
    """
    from timm.models import clean_state_dict

    require_file(path, "checkpoint")
    found = dict(_states(_content(path)))
    if not found:
        raise InputError("the checkpoint holds no state dict (tensors by name)", where=str(path))
    most = max(map(len, found.values()))
    states = {name: state for name, state in found.items() if 2 * len(state) > most}  # no moments of an optimizer
    chosen = _choose(states, path)
    notes = []
    if len(states) > 1:
        others = [name for name in states if name != chosen]
        notes.append(f"of the checkpoint's states, {chosen} was loaded, and not {listed(others, 4)}")
    state = states[chosen]
    values = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if values:
        notes.append(f"entries of the checkpoint that are no tensors were left out: {listed(map(str, values))}")
    return clean_state_dict({key: value for key, value in state.items() if isinstance(value, Tensor)}), notes


def _content(path: Path) -> Any:
    """What the file holds."""
    from argparse import Namespace

    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            _check_names(path)
            return load_file(path)
        with torch.serialization.safe_globals([Namespace]):  # timm's training stores its arguments so
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # zip, pickle, safetensors and torch raise different types for a foreign file
        if _is_pickle(path) and any(words in str(error) for words in ("Weights only load failed", "weights_only")):
            raise InputError(
                "the checkpoint holds Python objects beside tensors, and loading them could run code: refused",
                where=str(path),
                fix="save its state dict as safetensors, with the program that wrote it",
            ) from error
        raise InputError(
            f"the checkpoint cannot be read: {' '.join(str(error).split())[:200] or type(error).__name__}",
            where=str(path),
            fix="give a complete safetensors file, or a .pth/.pt file with a state dict",
        ) from error


def _check_names(path: Path) -> None:
    """Refuse a safetensors file whose header names a tensor twice: readers take the last one without a word."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > LARGEST_HEADER:
            return  # the library refuses it
        header = file.read(size)
    twice: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice.extend(name for name in dict.fromkeys(names) if names.count(name) > 1)
        return dict(pairs)

    try:
        json.loads(header, object_pairs_hook=collect)
    except (ValueError, RecursionError):
        return  # the library refuses it
    if twice:
        raise InputError(
            f"the checkpoint's header names {listed(twice)} twice, so that it is unclear which tensor is meant",
            where=str(path),
            fix="save the state dict again with safetensors",
        )


def _is_pickle(path: Path) -> bool:
    """Whether the file has a format of torch: a zip archive, or a bare pickle of protocol 2 or later."""
    with path.open("rb") as file:
        return zipfile.is_zipfile(file) or (file.seek(0), file.read(1))[1] == b"\x80"


def _states(content: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping from names to tensors in ``content``, by its place, such as ``ema.state_dict``."""
    if not isinstance(content, Mapping) or depth > DEPTH:
        return
    if all(isinstance(key, str) for key in content) and any(isinstance(value, Tensor) for value in content.values()):
        yield path, content
        return
    for key, value in content.items():
        yield from _states(value, f"{path}.{key}" if path else str(key), depth + 1)


def _choose(states: Mapping[str, Mapping[str, Any]], path: Path) -> str:
    """The place of the model's state."""
    if len(states) == 1:
        return next(iter(states))
    for name in PREFERRED:
        found = [place for place in states if place.partition(".")[0] == name]
        if len(found) == 1:
            return found[0]
    raise InputError(
        f"the checkpoint holds several states: {listed(states, 6)}",
        where=str(path),
        fix="save the one that is meant, as a safetensors file of its own",
    )
