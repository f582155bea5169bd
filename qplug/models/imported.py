"""The function or class that ``source: import`` names: whether it may be called, and without whose word."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import Distribution, distributions
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from qplug.core.errors import InputError, Terminated, ending
from qplug.core.text import did_you_mean, short
from qplug.core.types import ForeignCode

CALLED = "a class of modules or a function that returns one"


def refuse_standard_library(target: str) -> str:
    """``target``; raises ``ValueError`` if its module is of Python's standard library, which has no models."""
    top = target.partition(".")[0].partition(":")[0]
    if top in sys.stdlib_module_names:
        raise ValueError(f"expected {CALLED}, received a name of Python's own library: '{short(target)}'")
    return target


def foreign_code(target: str, kwargs: Mapping[str, Any], importing: bool) -> ForeignCode | None:
    """``target`` with the reason why its call needs the user's word; ``None`` if it does not.

    A class of modules of an installed package needs none. Neither does a function that is declared to return a module,
    nor one of a module of timm's architectures. Arguments that name a file or an address need it: the function may
    run what it finds there. ``importing`` is whether ``target`` may be imported to find out, if it is installed.
    """
    top = target.partition(":")[0].partition(".")[0]
    reason = _reason(top, target, kwargs, importing)
    return ForeignCode(top, "target", f"{short(target)} {reason}") if reason else None


def _reason(top: str, target: str, kwargs: Mapping[str, Any], importing: bool) -> str:
    if not is_installed(top):
        return "is code from outside the installed packages"
    named = next(_names(dict(kwargs)), None)
    if named is not None:
        return f"would be called with the name of a file or an address, '{short(named)}'"
    value = resolve(target) if importing else None
    if value is None or inspect.isclass(value) or _returns_module(value) or _is_architecture(value):
        return ""
    return "is a function that is not declared to return a torch.nn.Module"


def resolve(target: str) -> Callable[..., Any]:
    """Import ``target``; raises ``InputError`` unless it is a class of modules, a function or a method."""
    from torch import nn

    path, _, attribute = target.partition(":")
    value: Any = _import(path, target)
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise InputError(f"{path} has no '{part}' (target: {target})", fix=did_you_mean(part, dir(value)))
        value = getattr(value, part)
    code = value if inspect.isclass(value) else inspect.unwrap(value) if callable(value) else value
    allowed = issubclass(code, nn.Module) if inspect.isclass(code) else inspect.isfunction(code) or _is_method(code)
    if not allowed or _top(code) in sys.stdlib_module_names:
        raise InputError(
            f"{target} is {_described(value)}: expected {CALLED}",
            where="model.target",
            fix="set model.target to a function that returns the model",
        )
    return value  # type: ignore[no-any-return]  # checked above


def is_installed(top: str) -> bool:
    """Whether the module ``top`` that Python would import belongs to an installed distribution, editable or not."""
    if top == "qplug":
        return True
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # __main__ has no spec
        return False
    if spec is None:
        return False
    places = [Path(place).resolve() for place in spec.submodule_search_locations or [spec.origin or ""]]
    likely = distributions(name=top)  # most have the name of their module; to read the others takes longer
    return any(_holds(distribution, top, places) for distribution in chain(likely, distributions()))


def _holds(distribution: Distribution, top: str, places: list[Path]) -> bool:
    """Whether ``distribution`` installed the files: beside its metadata, by a path file, or in its project's folder."""
    root, project = Path(str(distribution.locate_file(""))).resolve(), _project(distribution)
    if all(place.parent == root for place in places) and _lists(distribution, top):
        return True
    if project is None:
        return False
    if all(place.is_relative_to(project) for place in places) and _lists(distribution, top):
        return True
    files = [file for file in distribution.files or [] if file.suffix == ".pth"]
    lines = [line for file in files for line in file.read_text().splitlines() if line.startswith(os.sep)]
    return any(all(place.parent == Path(line).resolve() for place in places) for line in lines)


def _lists(distribution: Distribution, top: str) -> bool:
    """Whether ``distribution`` says that it holds the module or package ``top``."""
    if top in (distribution.read_text("top_level.txt") or "").split():
        return True
    return any(file.parts[0].partition(".")[0] == top for file in distribution.files or [])


def _project(distribution: Distribution) -> Path | None:
    """The folder of an editable installation."""
    try:
        given = json.loads(distribution.read_text("direct_url.json") or "{}")
    except ValueError:
        return None
    url = str(given.get("url", ""))
    if not given.get("dir_info", {}).get("editable") or not url.startswith("file://"):
        return None
    return Path(url2pathname(urlparse(url).path)).resolve()


def _names(value: Any) -> Iterator[str]:
    """Texts in ``value`` that name a file or an address."""
    if isinstance(value, str):
        if "/" in value or "\\" in value or Path(value or "?").exists():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _names(item)
    elif isinstance(value, list):
        for item in value:
            yield from _names(item)


def _returns_module(function: Callable[..., Any]) -> bool:
    from torch import nn

    try:
        returned = typing.get_type_hints(inspect.unwrap(function)).get("return")
    except Exception:  # an annotation may name what is not there
        return False
    return inspect.isclass(returned) and issubclass(returned, nn.Module)


def _is_architecture(function: Callable[..., Any]) -> bool:
    """Whether ``function`` is of a module of timm that defines architectures."""
    import timm

    return str(function.__module__).removeprefix("timm.models.") in timm.list_modules()


def _is_method(value: object) -> bool:
    return inspect.ismethod(value) and inspect.isfunction(value.__func__)


def _top(value: object) -> str:
    return str(getattr(value, "__module__", "")).partition(".")[0]


def _described(value: object) -> str:
    if _top(value) in sys.stdlib_module_names and callable(value):
        return "of Python's own library"
    return f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"


def _import(path: str, target: str) -> Any:
    try:
        return importlib.import_module(path)
    except Terminated:
        raise
    except (Exception, SystemExit, GeneratorExit) as error:  # the module is missing, or its code raises
        reason = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else f"it raised {ending(error)}"
        raise InputError(
            f"{target} cannot be imported: {reason}",
            fix="install the package, or add the folder of the file to PYTHONPATH",
        ) from error
