"""The fields of a configuration as a table, from its JSON Schema."""

from __future__ import annotations

import json
from typing import Any

from generators.text import cell, table

Schema = dict[str, Any]
BOUNDS = (
    ("minimum", "≥"),
    ("exclusiveMinimum", ">"),
    ("maximum", "≤"),
    ("exclusiveMaximum", "<"),
    ("minItems", "entries ≥"),
    ("maxItems", "entries ≤"),
)
NAMES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
}


def fields(schema: Schema, definitions: Schema, tag: str = "") -> str:
    """Key, values, default and meaning of every property but the tag."""
    required = set(schema.get("required", ()))
    rows = [
        (
            f"`{name}`",
            cell(values(field, definitions)),
            "required" if name in required else f"`{default(field)}`",
            cell(meaning(field, definitions)),
        )
        for name, field in schema.get("properties", {}).items()
        if name != tag
    ]
    return table(("key", "values", "default", "meaning"), rows) if rows else "No parameters.\n"


def default(field: Schema) -> str:
    """The default as YAML writes it."""
    value = field.get("default")
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def meaning(field: Schema, definitions: Schema) -> str:
    """The field's description, or that of what it holds."""
    if "description" in field:
        return str(field["description"])
    inner = resolved(field, definitions)
    return str(inner.get("description", "")).partition("\n")[0] if inner is not field else ""


def resolved(field: Schema, definitions: Schema) -> Schema:
    """The definition that a field refers to, alone, beside null, or as the entries of a list; or the field."""
    for part in (field, *field.get("anyOf", ()), field.get("items", {})):
        if isinstance(part, dict) and "$ref" in part:
            found: Schema = definitions[part["$ref"].rsplit("/", 1)[-1]]
            return found
    return field


def values(field: Schema, definitions: Schema) -> str:
    """What a field may hold, with its bounds."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[-1]
        return "any value" if name == "JsonValue" else values(definitions[name], definitions)
    if "discriminator" in field:
        names = ", ".join(f"`{name}`" for name in sorted(field["discriminator"]["mapping"]))
        tag = field["discriminator"]["propertyName"]
        return f"mapping with `{tag}`" if names.count(",") > 8 else f"mapping with `{tag}`: {names}"
    if "anyOf" in field or "oneOf" in field:
        parts = field.get("anyOf", field.get("oneOf", ()))
        return " or ".join(dict.fromkeys(values(part, definitions) for part in parts))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    bounds = ", ".join(f"{sign} {_number(field[key])}" for key, sign in BOUNDS if key in field)
    if field.get("type") == "array":
        return " ".join(filter(None, [_array(field, definitions), f"({bounds})" * bool(bounds)]))
    return f"{NAMES.get(str(field.get('type')), 'any value')} {bounds}".strip()


def _array(field: Schema, definitions: Schema) -> str:
    if "prefixItems" in field:
        return f"[{', '.join(values(item, definitions) for item in field['prefixItems'])}]"
    return f"list of {values(field['items'], definitions)}" if field.get("items") else "list"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)
