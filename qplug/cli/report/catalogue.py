"""Installed plugins and techniques, as values for ``--json`` and as tables."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from qplug.cli.report.screen import Table
from qplug.core.errors import InputError
from qplug.core.text import did_you_mean
from qplug.hooks.registry import Plugin, Registry

if TYPE_CHECKING:
    from qplug.core.component import Technique

HINT = "'qplug techniques NAME' shows the plugin, the parameters and the hooks of a technique"
_BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))


def plugins(registry: Registry) -> list[dict[str, Any]]:
    """All entry points: their components, or the error that kept a plugin from loading."""
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
    """One row for each plugin; notes give the error of a plugin that failed to load."""
    rows: list[tuple[str, ...]] = []
    for row in plugins(registry):
        counts: dict[str, int] = {}
        for offer in row["offers"]:
            kind = offer.partition(":")[0]
            counts[kind] = counts.get(kind, 0) + 1
        offers = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items())
        state = "broken" if row["error"] else "ok"
        rows.append((row["name"], row["distribution"], row["version"], state, offers or "nothing"))
    notes = [f"{plugin}: {plugin.error}" for plugin in registry.broken()]
    notes += [f"{plugin} printed on import: {plugin.printed}" for plugin in registry.plugins if plugin.printed]
    columns = ("plugin", "distribution", "version", "state", "offers")
    return Table("Plugins", columns, rows, notes=notes, styles={"broken": "bold red"})


def technique(registry: Registry, name: str) -> dict[str, Any]:
    """One technique with its parameters; raises ``InputError`` for a name that is not installed."""
    technique_class = registry.techniques.get(name)
    if technique_class is None:
        for plugin in registry.broken():
            if plugin.name == name.partition(".")[0]:
                raise InputError(f"'{name}' belongs to plugin {plugin}, which failed to load: {plugin.error}")
        fix = did_you_mean(name, registry.techniques) or "'qplug techniques' lists the installed ones"
        raise InputError(f"there is no technique '{name}'", fix=fix)
    return {
        **_head(technique_class, registry.owner(technique_class)),
        "about": inspect.getdoc(technique_class) or "",
        "parameters": parameters(technique_class),
    }


def techniques(registry: Registry) -> list[dict[str, Any]]:
    """All techniques: name, plugin, paper, hooks and first line of the description."""
    return [_head(technique, registry.owner(technique)) for _, technique in sorted(registry.techniques.items())]


def _head(technique: type[Technique], plugin: Plugin | None) -> dict[str, Any]:
    hooks = sorted(name for name in dir(technique) if hasattr(getattr(technique, name), "qplug_impl"))
    return {
        "name": technique.name(),
        "summary": (inspect.getdoc(technique) or "").partition("\n")[0],
        "paper": technique.paper or None,
        "plugin": str(plugin) if plugin else None,
        "hooks": hooks,
    }


def parameters(technique: type[Technique]) -> list[dict[str, Any]]:
    """Name, type with bounds, default and description (with the unit) of all parameters except the tag."""
    schema = technique.Config.model_json_schema()
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
        if name != technique.tag
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
    """One row for each technique; the name of its plugin is the first part of its name."""
    rows = [(row["name"], _without_markup(row["summary"]), row["paper"] or "") for row in techniques(registry)]
    notes = [HINT] if rows else ["no technique is installed"]
    return Table("Techniques", ("technique", "what it does", "paper"), rows, notes=notes)


def techniques_by_plugin(registry: Registry, word: str = "") -> list[Table]:
    """A table for each plugin, with the paper of each technique below it.

    ``word`` selects the plugins whose name holds it, in any case, or else the papers. Raises ``InputError`` if there
    is none.
    """
    rows = techniques(registry)
    chosen = [row for row in rows if word.lower() in row["name"].partition(".")[0].lower()]
    chosen = chosen or [row for row in rows if word.lower() in (row["paper"] or "").lower()]
    if word and not chosen:
        technique(registry, word)  # raises: it is no technique either
    tables: list[Table] = []
    for plugin in dict.fromkeys(row["name"].partition(".")[0] for row in chosen):
        cells: list[tuple[str, str]] = []
        styles: dict[int | str, str] = {}
        for row in chosen:
            if row["name"].partition(".")[0] == plugin:
                cells.append((row["name"], _without_markup(row["summary"])))
                if row["paper"]:
                    styles[len(cells)] = "dim"
                    cells.append(("", row["paper"]))
        tables.append(Table(plugin, ("technique", "what it does, and its paper"), cells, styles=styles))
    return [*tables, Table("", notes=[HINT if tables else "no technique is installed"])]


def technique_tables(registry: Registry, name: str) -> list[Table]:
    """Paper, plugin, hooks and description of a technique, then its parameters."""
    row = technique(registry, name)
    facts = [
        ("paper", row["paper"] or "none named"),
        ("plugin", row["plugin"] or "none"),
        ("hooks", ", ".join(row["hooks"])),
    ]
    about = Table(row["name"], (), facts, prose=_without_markup(row["about"]))
    cells = [
        (p["name"], p["type"], "required" if p["required"] else _value(p["default"]), _without_markup(p["description"]))
        for p in row["parameters"]
    ]
    if not cells:
        return [about, Table("", notes=["no parameters"])]
    return [about, Table("Parameters", ("parameter", "values", "default", "meaning"), cells)]


def _without_markup(text: str) -> str:
    """The text with single quotes in place of the double backquotes of docstrings."""
    return text.replace("``", "'")


def _value(value: Any) -> str:
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else str(value)
