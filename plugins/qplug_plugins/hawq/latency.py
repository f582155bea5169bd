"""Latency tables: layer → bits → milliseconds, from a file or from the recipe."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from qplug import InputError

FLOAT_BITS = 32
"""The bit width of a layer in float in a table."""

Bits = Annotated[int, Field(ge=2, le=FLOAT_BITS)]
Milliseconds = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Table = dict[str, dict[Bits, Milliseconds]]


def read(value: object) -> object:
    """The validated table: ``value`` itself, or the content of the JSON or YAML file with this path.

    Raises:
        ValueError: the file cannot be read, or an entry is not layer → bits → milliseconds; names file and entry.
    """
    if value is None:
        return None
    prefix, table = "", value
    if isinstance(value, str):
        prefix, table = f"{value}: ", _load(value)
    try:
        return TypeAdapter(Table).validate_python(table)
    except ValidationError as error:
        first = error.errors()[0]
        entry = " → ".join(str(part) for part in first["loc"] if part != "[key]")
        raise ValueError(
            f"{prefix}expected layer → bits → milliseconds, {first['msg'][:1].lower()}{first['msg'][1:]}, "
            f"received {str(first['input'])[:60]!r}" + (f" at {entry}" if entry else "")
        ) from None


def _load(path: str) -> object:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    file = Path(path).expanduser()
    if file.exists() and not file.is_file():  # reading a pipe or a device may never end
        raise ValueError(f"{path}: is no plain file")
    try:
        text = file.read_text(encoding="utf-8")
        return YAML(typ="safe", pure=True).load(text)  # YAML includes JSON
    except OSError as error:
        raise ValueError(f"{path}: the file cannot be read: {error.strerror}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: this is neither JSON nor YAML: {' '.join(str(error).split())}") from None


def total(table: Mapping[str, Mapping[int, float]], bits: Mapping[str, int], modules: Collection[str]) -> float:
    """Milliseconds of all layers of the table.

    Args:
        table: layer → bits → milliseconds.
        bits: layer → its bits, for every quantized layer; other layers of the table stay in float.
        modules: names of all modules of the model.

    Raises:
        InputError: the model does not have a layer, or a layer has no entry at its bits.
    """
    milliseconds = 0.0
    for layer, row in table.items():
        if layer not in modules:
            raise InputError(
                f"the model has no layer '{layer}'",
                where="hawq.hawq_v3, latencies",
                fix="qplug inspect MODEL lists the layers; remove the entry, or correct its name",
            )
        width = bits.get(layer, FLOAT_BITS)
        if width not in row:
            raise InputError(
                f"expected the latency of '{layer}' at {width} bits{' (float)' if width == FLOAT_BITS else ''}, "
                f"received it at {', '.join(map(str, sorted(row))) or 'none'}",
                where="hawq.hawq_v3, latencies",
                fix="measure the latency of every candidate",
            )
        milliseconds += row[width]
    return milliseconds


def check_complete(table: Mapping[str, Mapping[int, float]], layers: Collection[str]) -> None:
    """Raise ``InputError`` if a layer whose bits are allocated is missing in the table."""
    missing = [layer for layer in layers if layer not in table]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(layers)} layers have no latency: {', '.join(missing[:3])}",
            where="hawq.hawq_v3, latencies",
            fix="measure their latencies, or fix their bits by an override",
        )
