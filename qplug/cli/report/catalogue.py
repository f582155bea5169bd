"""What is installed, as values for ``--json`` and as tables."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from qplug.cli.report.screen import Table
from qplug.core.errors import InputError
from qplug.core.text import did_you_mean
from qplug.hooks.registry import Plugin, Registry

if TYPE_CHECKING:
    from qplug.core.component import Technique

_BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))


def plugins(registry: Registry) -> list[dict[str, Any]]:
    """Every entry point, with what it offers and, where it failed, why."""
    offers: dict[str, list[str]] = {}
    for key, owner in registry.owners.items():
        offers.setdefault(owner.name, []).append(key)
    return [
        {
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "module": plugin.module,
            "error": plugin.error or None,
            "printed": plugin.printed or None,
            "offers": [] if plugin.error else sorted(offers.get(plugin.name, [])),
        }
        for plugin in registry.plugins
    ]


def plugins_table(registry: Registry) -> Table:
    """One row a plugin; the reasons of those that failed stand below."""
    rows: list[tuple[str, ...]] = []
    for row in plugins(registry):
        counts: dict[str, int] = {}
        for offer in row["offers"]:
            kind = offer.partition(":")[0]
            counts[kind] = counts.get(kind, 0) + 1
        what = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items())
        state = "broken" if row["error"] else "ok"
        rows.append((row["name"], row["distribution"], row["version"], state, what or "nothing"))
    notes = [f"{plugin}: {plugin.error}" for plugin in registry.broken()]
    notes += [f"{plugin} printed on import: {plugin.printed}" for plugin in registry.plugins if plugin.printed]
    return Table("Plugins", ("plugin", "distribution", "version", "state", "offers"), rows, notes=notes)


def technique(registry: Registry, name: str) -> dict[str, Any]:
    """One technique with its parameters; raises ``InputError`` for a name that is not installed."""
    found = registry.techniques.get(name)
    if found is None:
        for plugin in registry.broken():
            if plugin.name == name.partition(".")[0]:
                raise InputError(f"'{name}' belongs to plugin {plugin}, which cannot be used: {plugin.error}")
        fix = did_you_mean(name, registry.techniques) or "'qplug techniques' lists the installed ones"
        raise InputError(f"there is no technique '{name}'", fix=fix)
    return {
        **_head(found, registry.owner(found)),
        "about": inspect.getdoc(found) or "",
        "parameters": parameters(found),
    }


def techniques(registry: Registry) -> list[dict[str, Any]]:
    """Every technique: name, plugin, paper, hooks, first line of its description."""
    return [_head(found, registry.owner(found)) for _, found in sorted(registry.techniques.items())]


def _head(found: type[Technique], plugin: Plugin | None) -> dict[str, Any]:
    hooks = sorted(name for name in dir(found) if hasattr(getattr(found, name), "qplug_impl"))
    return {
        "name": found.name(),
        "summary": (inspect.getdoc(found) or "").partition("\n")[0],
        "paper": found.paper or None,
        "plugin": str(plugin) if plugin else None,
        "hooks": hooks,
    }


def parameters(found: type[Technique]) -> list[dict[str, Any]]:
    """Name, type with bounds, default and description (with the unit) of every parameter but the tag."""
    schema = found.Config.model_json_schema()
    required = set(schema.get("required", ()))
    return [
        {
            "name": name,
            "type": _type(field, schema),
            "required": name in required,
            "default": field.get("default"),
            "description": field.get("description", ""),
        }
        for name, field in schema.get("properties", {}).items()
        if name != found.tag
    ]


def _type(field: dict[str, Any], schema: dict[str, Any]) -> str:
    if "$ref" in field:
        return _type(schema["$defs"][field["$ref"].rsplit("/", 1)[-1]], schema)
    if "anyOf" in field or "oneOf" in field:
        return " or ".join(_type(part, schema) for part in field.get("anyOf", field.get("oneOf", ())))
    if "enum" in field or "const" in field:
        return ", ".join(str(value) for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        items = field.get("items")
        return f"list of {_type(items, schema)}" if isinstance(items, dict) else "list"
    if field.get("type") == "object" and "properties" in field:
        return f"mapping of {', '.join(field['properties'])}"
    names = {
        "string": "text",
        "integer": "whole number",
        "null": "nothing",
        "boolean": "true or false",
        "object": "mapping",
    }
    name = names.get(str(field.get("type")), str(field.get("type", "anything")))
    bounds = " ".join(f"{sign} {field[key]}" for key, sign in _BOUNDS if key in field)
    return f"{name} {bounds}".strip()


def techniques_table(registry: Registry) -> Table:
    """One row a technique."""
    rows = [(row["name"], row["summary"], row["plugin"] or "", row["paper"] or "") for row in techniques(registry)]
    notes = ["'qplug techniques NAME' shows parameters and hooks"] if rows else ["no technique is installed"]
    return Table("Techniques", ("technique", "what it does", "plugin", "paper"), rows, notes=notes)


def technique_tables(registry: Registry, name: str) -> list[Table]:
    """What a technique is, and its parameters."""
    row = technique(registry, name)
    facts = [
        ("paper", row["paper"] or "none named"),
        ("plugin", row["plugin"] or "none"),
        ("hooks", ", ".join(row["hooks"])),
    ]
    about = Table(row["name"], (), facts, prose=row["about"])
    cells = [
        (p["name"], p["type"], "required" if p["required"] else _value(p["default"]), p["description"])
        for p in row["parameters"]
    ]
    if not cells:
        return [about, Table("", notes=["It has no parameters."])]
    return [about, Table("Parameters", ("parameter", "values", "default", "meaning"), cells)]


def _value(value: Any) -> str:
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else str(value)
