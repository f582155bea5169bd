"""What a plugin may state and implement: its hook API version, the names of its hooks, and their parameters."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from qplug.core.component import Technique
from qplug.core.errors import PluginError
from qplug.core.text import close
from qplug.core.version import __version__
from qplug.hooks import specs
from qplug.hooks.manager import RENAMED

STATED = "qplug_hook_api"
"""The attribute of a plugin's module that says which hook API the plugin was written for."""

PREFIX = "qplug_"
PLACES = ((specs.DiscoverySpecs, "the plugin's module"), (specs.RunSpecs, "a technique"))
"""Specifications, and where their hooks are implemented."""


def check_api(stated: object) -> None:
    """Refuse a plugin for another hook API; ``stated`` is its ``qplug_hook_api``. Raises ``PluginError``."""
    here = f"{specs.HOOK_API[0]}.{specs.HOOK_API[1]}"
    text = str(stated) if isinstance(stated, (str, int)) else ""
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise PluginError(
            f"{STATED} must be a version such as '{specs.HOOK_API[0]}', got {stated!r}",
            fix=f"write {STATED} = '{specs.HOOK_API[0]}'",
        )
    major, minor = map(int, [*text.split("."), "0"][:2])
    if (major, minor) > specs.HOOK_API or major != specs.HOOK_API[0]:
        newer = major >= specs.HOOK_API[0]
        raise PluginError(
            f"was written for hook API {text}, and qplug {__version__} has hook API {here}",
            fix=f"{'update qplug' if newer else 'update the plugin'}, or install a version of the plugin for {here}",
        )


def check_hooks(owner: object, specifications: type, who: str) -> int:
    """Refuse what looks like a hook of ``owner`` and is not called as one; returns the number of hooks.

    Args:
        owner: the module of a plugin, or an instance of a technique.
        specifications: ``DiscoverySpecs`` or ``RunSpecs``.
        who: the subject of every message.

    Raises:
        PluginError: a method is named as a hook and not marked, a hook is unknown, or pluggy would not pass a
            parameter.
    """
    known, found = hook_names(specifications), 0
    for name, member in _members(owner):
        options = getattr(member, "qplug_impl", None)
        if not isinstance(options, dict):
            if name.startswith(PREFIX):
                raise _unmarked(name, known, who)
            continue
        given = options.get("specname") or name
        hook = RENAMED.get(given, given)
        if hook in known:
            _check_parameters(member, getattr(specifications, hook), f"{who}: {name}")
        elif not options.get("optionalhook"):
            raise PluginError(f"{who}: unknown hook '{given}'", fix=_suggest(given, specifications))
        if options.get("wrapper") or options.get("hookwrapper"):
            raise PluginError(
                f"{who}: {name} is a wrapper, and qplug calls each plugin alone", fix="remove wrapper=True"
            )
        found += 1
    return found


def hook_names(specifications: type) -> list[str]:
    """The hooks that ``specifications`` names, in its order."""
    return [name for name in vars(specifications) if name.startswith(PREFIX)]


def check_technique(technique: type[Technique], prefix: str | None = None) -> None:
    """Refuse a technique whose tag, configuration or hooks are not what the core will call; raises ``PluginError``."""
    label = getattr(technique, "__name__", repr(technique))
    if not (isinstance(technique, type) and issubclass(technique, Technique)):
        raise PluginError(f"{label} is not a subclass of qplug.Technique")
    field = technique.Config.model_fields.get("use") if hasattr(technique, "Config") else None
    if field is None or not technique.name():
        raise PluginError(f"{label}.Config has no field use: Literal['<plugin>.<technique>']")
    if prefix is not None and not technique.name().startswith(f"{prefix}."):
        raise PluginError(f"technique '{technique.name()}' must be named '{prefix}.…', after its entry point")
    who = f"technique '{technique.name()}'"
    if not check_hooks(technique.__new__(technique), specs.RunSpecs, who):
        raise PluginError(f"{who} implements no hook", fix="mark its methods with @hookimpl")


def _members(owner: object) -> Iterator[tuple[str, Any]]:
    """The public functions and methods of ``owner``."""
    for name in dir(owner):
        if not name.startswith("_"):
            member = getattr(owner, name, None)
            if inspect.isroutine(member):
                yield name, member


def _unmarked(name: str, known: list[str], who: str) -> PluginError:
    if name in known or name in RENAMED:
        return PluginError(f"{who}: {name} is not marked with @hookimpl", fix="write @qplug.hookimpl above it")
    names = _close(name, known)
    return PluginError(
        f"{who}: {name} is not marked with @hookimpl, and there is no such hook",
        fix=f"did you mean {names}?" if names else f"choose another name: only hooks begin with {PREFIX}",
    )


def _suggest(name: str, specifications: type) -> str:
    for other, place in PLACES:
        if other is not specifications and name in hook_names(other):
            return f"it is a hook of {place}: implement it there"
    known = hook_names(specifications)
    names = _close(name, known)
    return f"did you mean {names}?" if names else f"the hooks are {', '.join(known)}"


def _close(name: str, known: list[str]) -> str:
    """Hooks whose names are close to ``name``; the prefix that all share makes none of them closer."""
    found = close(name.removeprefix(PREFIX), [one.removeprefix(PREFIX) for one in known])
    return " or ".join(f"'{PREFIX}{one}'" for one in found)


def _check_parameters(member: Any, specification: Any, who: str) -> None:
    known = [name for name in inspect.signature(specification).parameters if name != "self"]
    passed = f"the hook passes {', '.join(known)}" if known else "the hook passes no parameter"
    for parameter in inspect.signature(member).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            raise PluginError(f"{who} takes {parameter}, which pluggy does not pass", fix=f"name each: {passed}")
        if parameter.default is not parameter.empty:
            raise PluginError(
                f"{who} gives '{parameter.name}' a default value, so pluggy never passes it", fix="remove the default"
            )
        if parameter.name not in known:
            near = close(parameter.name, known)
            hint = f"did you mean {' or '.join(repr(name) for name in near)}? " if near else ""
            raise PluginError(f"{who} has an unknown parameter '{parameter.name}'", fix=hint + passed)
