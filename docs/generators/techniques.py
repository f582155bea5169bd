"""One page for each plugin that has techniques."""

from __future__ import annotations

from typing import Any

from generators.fields import fields
from generators.sources import registry
from generators.text import docstring, escaped


def pages() -> dict[str, str]:
    """The pages by the plugin's name."""
    found: dict[str, list[Any]] = {}
    for name, technique in sorted(registry().techniques.items()):
        found.setdefault(name.partition(".")[0], []).append(technique)
    return {plugin: page(plugin, techniques) for plugin, techniques in found.items()}


def page(plugin: str, techniques: list[Any]) -> str:
    """Every technique of one plugin."""
    return f"# {plugin}\n\n" + "\n".join(section(technique) for technique in techniques)


def section(technique: Any) -> str:
    """What one technique does, its source, its hooks and its parameters."""
    schema = technique.Config.model_json_schema()
    marked = [name for name in sorted(dir(technique)) if hasattr(getattr(technique, name), "qplug_impl")]
    hooks = ", ".join(f"[`{name}`](../hooks.md#{name})" for name in marked)
    parts = [
        f"## {technique.name()}\n",
        docstring(technique),
        f"**Paper**: {escaped(technique.paper)}.\n" if technique.paper else "",
        f"**Hooks**: {hooks}\n",
        "**Parameters**\n",
        fields(schema, schema.get("$defs", {}), technique.tag),
    ]
    return "\n".join(parts)
