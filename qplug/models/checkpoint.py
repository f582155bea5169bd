"""Loading of checkpoint files into modules, without missing or extra tensors, and with numbers of the same kind."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qplug.core.errors import InputError
from qplug.core.text import listed
from qplug.models.checkpoint_file import read
from qplug.models.checkpoint_keys import several, unwrap

Shapes = dict[str, tuple[int, ...]]
Convert = Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], str]]
"""A function from a file's state to one under the model's names, and a note on that."""
HEADS = ("head", "fc", "classifier", "head_dist", "last_linear")
"""Last names of modules that are classifiers, in timm and torchvision."""
CLASSES = "set num_classes: {}"
COUNTER = "num_batches_tracked"
TRANSLATED = "the checkpoint's keys were translated by timm's checkpoint_filter_fn"


def load(
    module: nn.Module,
    path: Path,
    name: str,
    *,
    resample: bool = False,
    classes: str = CLASSES,
    convert: Convert | None = None,
) -> str:
    """Load ``path`` into ``module``, all tensors or none; returns notes on what was chosen, empty in most cases.

    Args:
        module: the architecture; its state is replaced.
        path: the checkpoint.
        name: name of the architecture in messages.
        resample: whether timm may resample position embeddings to another input size.
        classes: how to set the number of classes, for messages.
        convert: called with the file's state.

    Raises:
        InputError: the file cannot be read (see ``checkpoint_file.read``), belongs to another architecture, or holds
            numbers of another kind than the architecture's.
    """
    state, notes = read(path)
    if convert is not None:
        state, converted = convert(state)
        notes.append(converted)
    wanted = shapes(module.state_dict())
    unwrapped = None if fits(wanted, shapes(state)) else unwrap(wanted, state)
    for candidate, note in ((state, ""), unwrapped or ({}, "")):
        if fits(wanted, shapes(candidate)):
            return _loaded(module, candidate, path, [*notes, note])
        translated = _translate(module, candidate, resample) if candidate else None
        if translated is not None and fits(wanted, shapes(translated)):
            return _loaded(module, translated, path, [*notes, note, TRANSLATED])
    twice = several(wanted, state)
    if unwrapped is None and len(twice) > 1:
        raise InputError(
            f"the checkpoint holds {name} under several prefixes: {listed(map(repr, twice))}",
            where=str(path),
            fix="save the one that is meant, as a safetensors file of its own",
        )
    rest, note = unwrapped or (state, "")
    raise _misfit(wanted, shapes(rest), path, name, int(getattr(module, "num_classes", 0) or 0), classes, note)


def _loaded(module: nn.Module, state: dict[str, Tensor], path: Path, notes: Iterable[str]) -> str:
    """Load a state that fits; returns the notes as one text."""
    _check_kinds(module.state_dict(), state, path)
    module.load_state_dict(state)
    return "; ".join(note for note in notes if note)


def _check_kinds(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], path: Path) -> None:
    """Refuse numbers of another kind: torch would round, truncate or drop imaginary parts without an error."""
    wrong = [
        f"{key} ({str(value.dtype).removeprefix('torch.')})"
        for key, value in given.items()
        if key in wanted and not key.endswith(COUNTER) and _kind(value) != _kind(wanted[key])
    ]
    if wrong:
        raise InputError(
            f"tensors of the checkpoint hold another kind of numbers than the model's: {listed(wrong, 5)}",
            where=str(path),
            fix="give the checkpoint of the float model: qplug quantizes float weights, not those that are integers",
        )


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    return "float" if tensor.is_floating_point() else "quantized" if tensor.is_quantized else "integer"


def shapes(state: Mapping[str, Tensor]) -> Shapes:
    """The shapes of all tensors, by name."""
    return {key: tuple(value.shape) for key, value in state.items()}


def fits(wanted: Shapes, given: Shapes) -> bool:
    """Whether names and shapes agree. Old checkpoints lack BatchNorm's batch counter, which evaluation does not use."""
    return all(
        wanted.get(key) == given.get(key) for key in wanted.keys() | given.keys() if not _is_counter(key, wanted, given)
    )


def _is_counter(key: str, wanted: Shapes, given: Shapes) -> bool:
    return key.endswith(COUNTER) and key in wanted and key not in given


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


def _misfit(
    wanted: Shapes, given: Shapes, path: Path, name: str, classes: int, set_classes: str, note: str
) -> InputError:
    missing, extra = [k for k in wanted if k not in given], [k for k in given if k not in wanted]
    missing = [key for key in missing if not key.endswith(COUNTER)]
    other = [key for key in wanted if key in given and wanted[key] != given[key]]
    lines = [f"the checkpoint belongs to another architecture than {name}"]
    if missing:
        lines.append(f"  {len(missing)} of its {len(wanted)} tensors are missing: {listed(missing, 4)}")
    if extra:
        lines.append(f"  {len(extra)} of the file's {len(given)} tensors are unknown to it: {listed(extra, 4)}")
    if other:
        lines.append(f"  {len(other)} have another shape:")
        lines += [f"    {key}: {given[key]} in the file, {wanted[key]} in the model" for key in other[:3]]
    if note:
        lines.append(f"  {note}")
    fix = _fix(wanted, given, missing, extra, other, classes, set_classes)
    if not fix and (candidate := guess(given, path, name)):
        fix = f"it fits timm's {candidate}"
    return InputError("\n".join(lines), where=str(path), fix=fix)


def _fix(
    wanted: Shapes, given: Shapes, missing: list[str], extra: list[str], other: list[str], classes: int, setting: str
) -> str:
    """What helps if little differs: the classifier, the input size or the channels of the images."""
    if missing and not extra and not other and all(key.rpartition(".")[0].endswith(HEADS) for key in missing):
        return "it holds the model without its classifier: give a checkpoint with one, as random classes mean nothing"
    if not other or missing or extra:
        return ""
    heads = {given[key][:1] for key in other}
    if len(heads) == 1 and all(wanted[key][:1] == (classes,) and wanted[key][1:] == given[key][1:] for key in other):
        count = heads.pop()[0]
        return f"only the classifier differs: {setting.format(count) or f'the file has {count} classes'}"
    if all("pos_embed" in key or "relative_position" in key for key in other):
        return "it was trained with images of another size: set model.preprocessing.input_size to that"
    (first, *more) = other
    if not more and len(wanted[first]) == 4 and wanted[first][2:] == given[first][2:]:
        return f"it was trained with images of {given[first][1]} channels: set model.preprocessing.input_size to that"
    return ""


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
