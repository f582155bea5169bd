"""The code that results depend on: its digests, and how it differs from that of an earlier run."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from qplug.core.errors import InputError
from qplug.core.storage.hashing import code_digest, code_files, code_package
from qplug.core.storage.run_schema import CodeRecord, Lock
from qplug.core.text import listed
from qplug.core.version import __version__
from qplug.hooks.registry import Registry

PACKAGES = (
    *("torch", "torchvision", "timm", "brevitas", "nvidia-modelopt", "numpy", "scipy", "scikit-learn", "pillow"),
    *("pydantic", "pluggy", "safetensors", "transformers", "tokenizers", "accelerate"),
)
"""Packages that keys hold by version; their code is not hashed."""


def code_of(things: Iterable[object]) -> dict[str, str]:
    """Package → digest of its code, for qplug and for every package that defines one of ``things``.

    Args:
        things: instances, which count with every base of their class; functions; and ``module:name``.

    Raises:
        InputError: code is not in files, so its changes cannot be detected.
    """
    return {name: code_digest(name) for name in _packages(things)}


def _packages(things: Iterable[object]) -> list[str]:
    packages = {"qplug", *(code_package(module) for thing in things for module in _modules(thing))}
    return sorted(packages - {*sys.stdlib_module_names, *PACKAGES})


def _modules(thing: object) -> list[str]:
    if isinstance(thing, str):
        return [thing.partition(":")[0]]
    if isinstance(thing, functools.partial):
        return _modules(thing.func)
    return [part.__module__ for part in ([thing] if hasattr(thing, "__qualname__") else type(thing).__mro__)]


def plugin_packages(registry: Registry) -> dict[str, tuple[str, str]]:
    """Package → (distribution, version), for qplug and every plugin."""
    known = {code_package(plugin.module): (plugin.distribution, plugin.version) for plugin in registry.plugins}
    return {**known, "qplug": ("qplug", __version__)}


def code_records(
    things: Iterable[object], loading: Iterable[object], plugins: Mapping[str, tuple[str, str]]
) -> dict[str, dict[str, Any]]:
    """The record of every package that defines one of ``things``; a package without files has none.

    Args:
        things: as ``code_of`` takes them.
        loading: those on which the outputs of a loaded run depend.
        plugins: ``plugin_packages``.
    """
    loads = set(_known(loading))
    records = {}
    for name, digest in _known([*things, *loading]).items():
        distribution, number = plugins.get(name) or _installed(name)
        record = CodeRecord(
            distribution=distribution, version=number, digest=digest, files=code_files(name), loads=name in loads
        )
        records[name] = record.model_dump()
    return records


def _known(things: Iterable[object]) -> dict[str, str]:
    """``code_of``, without code that is in no file, because it was typed at a prompt."""
    known: dict[str, str] = {}
    for name in _packages(things):
        with suppress(InputError):
            known[name] = code_digest(name)
    return known


def _installed(package: str) -> tuple[str | None, str | None]:
    """The distribution of a package that is no plugin, if it has the package's name."""
    try:
        return package, version(package)
    except PackageNotFoundError:
        return None, None


def code_changes(lock: Lock, loading: Iterable[object], plugins: Mapping[str, tuple[str, str]]) -> list[str]:
    """One sentence for each package whose code is not that of the run: what it is, both versions, and the files.

    Args:
        lock: of the run.
        loading: what loads the run.
        plugins: ``plugin_packages``.
    """
    changes = []
    for name, digest in _known(loading).items():
        then = lock.code.get(name)
        if then is None or then.digest == digest:
            continue
        now = plugins.get(name) or _installed(name)
        versions = f"{then.version or 'no version'} in the run, {now[1] or 'no version'} now"
        title = then.distribution if then.distribution and then.distribution != name else ""
        changes.append(
            f"the code of {name}{f' ({title})' if title else ''} is not that of the run: {versions}; "
            f"{_files(then.files, code_files(name))}"
        )
    return changes


def _files(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    different = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    if not different:
        return "its files were edited while a process was running them, so what ran is not known"
    return f"{len(different)} of {len(then.keys() | now.keys())} files differ: {listed(different)}"


def missing_plugins(lock: Lock, registry: Registry) -> dict[str, str]:
    """Plugins whose code the run used and that cannot be used now: words → the requirement that installs one."""
    usable = {plugin.name: plugin for plugin in registry.plugins if not plugin.error}
    broken = {plugin.name: plugin.error.splitlines()[0] for plugin in registry.broken()}
    used = {record.distribution for record in lock.code.values()}
    missing = {}
    for name, record in lock.plugins.items():
        if record.loaded and name not in usable and record.distribution in used:
            why = f"cannot be used now: {broken[name]}" if name in broken else "is not installed now"
            words = f"{record.distribution} {record.version} (plugin '{name}'), which {why}"
            missing[words] = f"{record.distribution}=={record.version}"
    return missing
