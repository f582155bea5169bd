"""Every command with its arguments and options, from the typer application."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from generators.sources import application
from generators.text import cell, escaped, table

HEAD = """# Command line reference

This page is made from the program itself; `qplug COMMAND --help` prints the same.
Exit codes: 0 for success, 2 if the recipe or another input is wrong, 130 after Ctrl-C, 1 for anything else.
"""


def page() -> str:
    """All commands, in the order of ``qplug --help``."""
    root = get_command(application())
    common = options([p for p in root.params if p.name != "help"])
    return "\n".join([HEAD, "## Before any command\n", common, *sections(root, "qplug")])


def sections(group: Any, path: str) -> Iterator[str]:
    """The commands of a group, and those inside them."""
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        full = f"{path} {name}"
        if hasattr(command, "list_commands"):
            yield from sections(command, full)
            continue
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = " ".join([full, *(_argument(p) for p in arguments)])
        yield f"## {full}\n"
        yield f"```\n{usage} [options]\n```\n"
        yield f"{escaped(inspect.cleandoc(command.help or ''))}\n"
        yield options(command.params)


def options(parameters: list[Any]) -> str:
    """Arguments first, then options."""
    rows = [(_names(p), _default(p), cell(p.help or "")) for p in parameters if p.name != "help"]
    return table(("argument or option", "default", "meaning"), rows) if rows else ""


def _argument(parameter: Any) -> str:
    name = str(parameter.name).upper()
    dots = " …" if parameter.nargs == -1 else ""
    return f"{name}{dots}" if parameter.required else f"[{name}{dots}]"


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_argument(parameter)}`"
    value = "" if parameter.is_flag else f" {parameter.metavar or str(parameter.name).upper().replace('_', '-')}"
    return ", ".join(f"`{name}{value}`" for name in parameter.opts)


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if isinstance(parameter.show_default, str):
        return cell(parameter.show_default)
    if parameter.default in (None, False, ()) or parameter.is_flag:
        return ""
    return f"`{parameter.default}`"
