"""Loading of checkpoint files into modules, without missing or extra tensors and without running pickled code."""

from __future__ import annotations

import difflib
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qplug.core.errors import InputError
from qplug.core.text import listed

Shapes = dict[str, tuple[int, ...]]
TRANSLATED = "the checkpoint's keys were translated by timm's checkpoint_filter_fn"


def read(path: Path) -> dict[str, Tensor]:
    """The state dict of a safetensors file or of a torch file with tensors only, also under a key such as ``model``.

    Raises ``InputError`` if the file is missing or broken, or holds objects whose loading could run code.
    """
    from timm.models import load_state_dict

    if not path.is_file():
        raise InputError(
            "the checkpoint does not exist" if not path.exists() else "is a folder, not a file", where=str(path)
        )
    try:
        state = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # zip, pickle, safetensors and torch raise different types for a foreign file
        if "weights_only=True blocked" in str(error) and _is_pickle(path):
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
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError("the checkpoint holds no state dict (tensors by name)", where=str(path))
    return state


def _is_pickle(path: Path) -> bool:
    """Whether the file has a format of torch: a zip archive, or a bare pickle of protocol 2 or later."""
    with path.open("rb") as file:
        return zipfile.is_zipfile(file) or (file.seek(0), file.read(1))[1] == b"\x80"


def load(module: nn.Module, path: Path, name: str, *, resample: bool = False) -> str:
    """Load ``path`` into ``module``, all tensors or none; returns a warning, empty in most cases.

    Args:
        module: the architecture; its state is replaced.
        path: the checkpoint.
        name: name of the architecture in messages.
        resample: whether timm may resample position embeddings to another input size.

    Raises:
        InputError: the file cannot be read (see ``read``), or belongs to another architecture.
    """
    state, note = read(path), ""
    wanted = shapes(module.state_dict())
    if not fits(wanted, shapes(state)):
        translated = _translate(module, state, resample)
        if translated is None or not fits(wanted, shapes(translated)):
            raise _misfit(wanted, shapes(state), path, name, int(getattr(module, "num_classes", 0) or 0))
        state, note = translated, TRANSLATED
    module.load_state_dict(state)
    return note


def shapes(state: Mapping[str, Tensor]) -> Shapes:
    """The shapes of all tensors, by name."""
    return {key: tuple(value.shape) for key, value in state.items()}


def fits(wanted: Shapes, given: Shapes) -> bool:
    """Whether names and shapes agree. Old checkpoints lack BatchNorm's batch counter, which evaluation does not use."""
    return all(
        wanted.get(key) == given.get(key) for key in wanted.keys() | given.keys() if not _is_counter(key, wanted, given)
    )


def _is_counter(key: str, wanted: Shapes, given: Shapes) -> bool:
    return key.endswith("num_batches_tracked") and key in wanted and key not in given


def _translate(module: nn.Module, state: dict[str, Tensor], resample: bool) -> dict[str, Tensor] | None:
    """The state converted from its authors' format by timm's ``checkpoint_filter_fn``; ``None`` if timm has none."""
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return None
    try:
        result: dict[str, Tensor] = convert(dict(state), module)
    except Exception:  # the function expects the keys of its architecture; the caller reports the mismatch
        return None
    resampled = any(key in result and result[key].shape != state[key].shape for key in state)
    return None if resampled and not resample else result


def _misfit(wanted: Shapes, given: Shapes, path: Path, name: str, classes: int) -> InputError:
    missing, extra = [k for k in wanted if k not in given], [k for k in given if k not in wanted]
    other = [key for key in wanted if key in given and wanted[key] != given[key]]
    lines = [f"the checkpoint belongs to another architecture than {name}"]
    if missing:
        lines.append(f"  {len(missing)} of its {len(wanted)} tensors are missing: {listed(missing, 4)}")
    if extra:
        lines.append(f"  {len(extra)} of the file's {len(given)} tensors are unknown to it: {listed(extra, 4)}")
    if other:
        lines.append(f"  {len(other)} have another shape:")
        lines += [f"    {key}: {given[key]} in the file, {wanted[key]} in the model" for key in other[:3]]
    fix = ""
    heads = {given[key][:1] for key in other}
    if other and not missing and not extra and len(heads) == 1 and all(wanted[k][:1] == (classes,) for k in other):
        fix = f"only the classifier differs: set num_classes: {heads.pop()[0]}"
    elif candidate := guess(given, path, name):
        fix = f"it fits timm's {candidate}"
    return InputError("\n".join(lines), where=str(path), fix=fix)


def guess(given: Shapes, path: Path, name: str) -> str | None:
    """A timm architecture whose state has exactly these shapes, among those named like the file or like ``name``."""
    import timm

    known = timm.list_models()
    family = [other for other in known if other.split("_")[0] == name.split("_")[0]]
    candidates = difflib.get_close_matches(path.stem, known, n=4) + difflib.get_close_matches(name, family, n=8)
    for candidate in dict.fromkeys(candidates):
        if fits(_architecture(candidate), given):
            return str(candidate)
    return None


def _architecture(name: str) -> Shapes:
    import timm

    try:
        with torch.device("meta"):
            module: Any = timm.create_model(name, pretrained=False)
    except Exception:  # some architectures compute with their initial weights, which meta tensors do not support
        return {}
    return shapes(module.state_dict())
