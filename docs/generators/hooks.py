"""Every hook with its signature, from the hook specifications."""

from __future__ import annotations

import inspect
from typing import Any

from generators.sources import hook_specifications
from generators.text import docstring

HEAD = """# Hooks

A plugin does its work in hooks. This page is made from their specifications, in the order in which they are called.
`None` as a result means that the technique leaves the decision to the next one.
"""


def page() -> str:
    """All hooks, by the class that specifies them."""
    parts = [HEAD]
    for title, specs in zip(("Hooks of a plugin", "Hooks of a technique"), hook_specifications(), strict=True):
        parts += [f"## {title}\n", docstring(specs)]
        parts += [section(name, hook) for name, hook in vars(specs).items() if name.startswith("qplug_")]
    return "\n".join(parts)


def section(name: str, hook: Any) -> str:
    """One hook."""
    first = bool(getattr(hook, "qplug_spec", {}).get("firstresult"))
    calls = "The first result that is not `None` ends the calls.\n" if first else ""
    return "\n".join([f"### {name}\n", f"```python\n{signature(name, hook)}\n```\n", docstring(hook), calls])


def signature(name: str, hook: Any) -> str:
    """The hook as an implementation writes it, on several lines if one is too long."""
    found = inspect.signature(hook)
    parameters = [f"{p.name}: {_type(p.annotation)}" if p.name != "self" else "self" for p in found.parameters.values()]
    line = f"def {name}({', '.join(parameters)}) -> {_type(found.return_annotation)}: ..."
    if len(line) <= 88:
        return line
    return f"def {name}(\n    {', '.join(parameters)},\n) -> {_type(found.return_annotation)}: ..."


def _type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
