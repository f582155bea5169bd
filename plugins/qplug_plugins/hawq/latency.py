"""Latency tables: layer → bits → milliseconds, from a file or from the recipe itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from qplug import InputError

FLOAT_BITS = 32
"""Under which width a table has a layer that stays in float."""

Bits = Annotated[int, Field(ge=2, le=FLOAT_BITS)]
Milliseconds = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Table = dict[str, dict[Bits, Milliseconds]]


def read(value: object) -> object:
    """A table that is checked: ``value`` where it is one, or the contents of the JSON or YAML file that it names.

    Raises:
        ValueError: the file cannot be read, or something in it is no layer → bits → milliseconds; names file and place.
    """
    if value is None:
        return None
    where, given = "", value
    if isinstance(value, str):
        where, given = f"{value}: ", _load(value)
    try:
        return TypeAdapter(Table).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        place = " → ".join(str(part) for part in first["loc"] if part != "[key]")
        raise ValueError(
            f"{where}expected layer → bits → milliseconds, {first['msg'][:1].lower()}{first['msg'][1:]}, "
            f"received {str(first['input'])[:60]!r}" + (f" at {place}" if place else "")
        ) from None


def _load(path: str) -> object:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        return YAML(typ="safe", pure=True).load(text)  # JSON is YAML
    except OSError as error:
        raise ValueError(f"{path}: the file cannot be read: {error.strerror}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: this is neither JSON nor YAML: {' '.join(str(error).split())}") from None


def total(table: Mapping[str, Mapping[int, float]], bits: Mapping[str, int], modules: Collection[str]) -> float:
    """Milliseconds of all layers of the table.

    Args:
        table: layer → bits → milliseconds.
        bits: layer → its bits, of every quantized layer; what else is in the table stays in float.
        modules: names of all modules of the model.

    Raises:
        InputError: a layer that the model does not have, or one without an entry at its bits.
    """
    milliseconds = 0.0
    for layer, row in table.items():
        if layer not in modules:
            raise InputError(
                f"the model has no layer '{layer}'",
                where="hawq.hawq_v3, latencies",
                fix="qplug inspect MODEL lists the layers; take the entry out, or correct its name",
            )
        width = bits.get(layer, FLOAT_BITS)
        if width not in row:
            raise InputError(
                f"expected the latency of '{layer}' at {width} bits{' (float)' if width == FLOAT_BITS else ''}, "
                f"received it at {', '.join(map(str, sorted(row))) or 'none'}",
                where="hawq.hawq_v3, latencies",
                fix="measure it too; every candidate needs one",
            )
        milliseconds += row[width]
    return milliseconds


def check_complete(table: Mapping[str, Mapping[int, float]], layers: Collection[str]) -> None:
    """Raises ``InputError`` where a layer whose bits are to be chosen is not in the table."""
    missing = [layer for layer in layers if layer not in table]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(layers)} layers have no latency: {', '.join(missing[:3])}",
            where="hawq.hawq_v3, latencies",
            fix="measure them too, or fix their bits by an override",
        )
