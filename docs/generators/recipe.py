"""Every key of a recipe and of a sweep, from their JSON Schema."""

from __future__ import annotations

from collections.abc import Iterator

from generators.fields import Schema, fields, resolved
from generators.sources import recipe_schema, registry, sweep_schema
from generators.text import docstring, escaped

HEAD = """# Recipe reference

This page is made from the schema that validates recipes. `qplug schema` prints the same as JSON Schema, for editors.
The parameters of a technique are on the page of its plugin.
"""


def page() -> str:
    """Recipes by their sections, then sources of models and data, then sweeps."""
    schema = recipe_schema()
    parts = [HEAD, "## Recipe\n", f"{escaped(schema['description'])}\n", fields(schema, schema["$defs"])]
    parts += sections(schema, schema["$defs"])
    found = registry()
    for title, tag, sources in (("model", "source", found.models), ("data", "source", found.datasets)):
        for name, source in sorted(sources.items()):
            config = source.Config.model_json_schema()
            parts += [f"## {title}, source {name}\n", docstring(source), fields(config, config.get("$defs", {}), tag)]
            parts += sections(config, config.get("$defs", {}))
    sweep = sweep_schema()
    parts += ["## Sweep\n", f"{escaped(sweep['description'])}\n", fields(sweep, sweep["$defs"])]
    parts += sections(sweep, sweep["$defs"])
    return "\n".join(parts)


def sections(schema: Schema, definitions: Schema, path: str = "", depth: int = 3) -> Iterator[str]:
    """The mappings inside ``schema``, each under its dotted key; ``qat`` shows only what ``finetune`` lacks."""
    for name, field in schema.get("properties", {}).items():
        inner = resolved(field, definitions)
        if inner is field or "properties" not in inner:
            continue
        key = f"{path}.{name}" if path else name
        yield f"{'#' * depth} {key}\n"
        if key == "qat":
            common = definitions["FineTune"]["properties"]
            inner = {**inner, "properties": {k: v for k, v in inner["properties"].items() if k not in common}}
            yield "Every key of `finetune`, and:\n"
        yield f"{escaped(inner.get('description', ''))}\n"
        yield fields(inner, definitions)
        yield from sections(inner, definitions, key, depth)
