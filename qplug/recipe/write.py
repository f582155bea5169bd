"""Write a recipe to change: one that comes with qplug, with another model and other data."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

SCHEMA = "qplug.schema.json"
"""Name of the file with the JSON Schema of recipes, beside the recipe."""
MODELINE = f"# yaml-language-server: $schema={SCHEMA}"
"""What tells an editor the schema."""


def recipe_text(path: Path, values: Mapping[str, Any], left_out: Collection[str] = ()) -> str:
    """The text of a recipe with another model and other data. Its comments stay, but for the first lines.

    Args:
        path: of a recipe that comes with qplug.
        values: plain values of ``model`` and ``data.…`` by dotted key.
        left_out: patterns of overrides to leave out.
    """
    head, body = _parts(path)
    lines = [MODELINE, f"# Written by 'qplug init' from qplug's recipe '{path.stem}'."]
    lines += ["#", *head] if head else []
    sections = _sections(body)
    data = {key.partition(".")[2]: value for key, value in values.items() if key.startswith("data.")}
    if data:
        batch = re.search(r"\bbatch_size: (\d+)", sections["data"])
        data |= {"batch_size": int(batch[1])} if batch else {}
        sections["data"] = _yaml({"data": data})
    if "model" in values:
        sections["model"] = _yaml({"model": values["model"]})
    sections["quantize"] = _without(sections["quantize"], left_out)
    return "\n".join([*lines, *(text.rstrip("\n") for text in sections.values())]) + "\n"


def _without(section: str, patterns: Collection[str]) -> str:
    """The lines of ``quantize`` without the overrides of these patterns, each of which has a line of its own."""
    lines = [line for line in section.splitlines() if not any(f'match: "{pattern}"' in line for pattern in patterns)]
    if not any("match:" in line for line in lines):
        lines = [line for line in lines if line.split("#")[0].strip() != "overrides:"]
    return "\n".join(lines)


def schema_text(schema: Mapping[str, Any]) -> str:
    """The schema as JSON."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _parts(path: Path) -> tuple[list[str], list[str]]:
    """The protocol in the first comment, and the lines behind it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    start = next((index for index, line in enumerate(lines[:end]) if line.startswith("# Protocol:")), end)
    return lines[start:end], lines[end:]


def _sections(lines: list[str]) -> dict[str, str]:
    """Key at the top → its lines."""
    found: dict[str, list[str]] = {}
    key = ""
    for line in lines:
        if line[:1].strip() and not line.startswith("#"):
            key = line.partition(":")[0]
        found.setdefault(key, []).append(line)
    return {key: "\n".join(text) for key, text in found.items()}


def _yaml(value: Any) -> str:
    from ruamel.yaml import YAML

    yaml, stream = YAML(typ="safe", pure=True), io.StringIO()
    yaml.default_flow_style = None  # the innermost mappings on one line
    yaml.width = 10_000
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(value, stream)
    return stream.getvalue()
