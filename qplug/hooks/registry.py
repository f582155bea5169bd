"""Entry points → ``Registry``: discover, load, classify. A plugin that fails is a row; it takes nothing else down."""

from __future__ import annotations

import functools
import importlib
import re
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from qplug.core.component import Component, Config, DataSource, ModelSource, Technique
from qplug.core.errors import InputError, PluginError
from qplug.core.types import Adapter, BackendOffer, Metric
from qplug.hooks import specs
from qplug.hooks.manager import Manager

if TYPE_CHECKING:
    from qplug.quantization.backends import Backend

GROUP = "qplug"
BLOCK = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
C = TypeVar("C", bound=Component)


@dataclass(frozen=True)
class Plugin:
    """One entry point: its name (the prefix of its techniques), distribution, version, and why it failed, if it did."""

    name: str
    distribution: str
    version: str
    module: str
    error: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


@dataclass
class Registry:
    """Everything that the installed plugins offer, by name, and who offers it."""

    plugins: list[Plugin] = field(default_factory=list)
    techniques: dict[str, type[Technique]] = field(default_factory=dict)
    models: dict[str, type[ModelSource]] = field(default_factory=dict)
    datasets: dict[str, type[DataSource]] = field(default_factory=dict)
    backends: dict[str, BackendOffer] = field(default_factory=dict)
    quantizers: dict[str, str] = field(default_factory=dict)
    adapters: list[Adapter] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    metrics: dict[str, Metric] = field(default_factory=dict)
    owners: dict[str, Plugin] = field(default_factory=dict)
    """Who offers what: keys are ``technique:NAME``, ``model:NAME``, ``dataset:NAME``, ``backend:NAME``, …"""

    def owner(self, technique: type[Technique]) -> Plugin | None:
        """The plugin that a technique's class came from."""
        return self.owners.get(f"technique:{technique.name()}")

    def broken(self) -> list[Plugin]:
        """The plugins that cannot be used, each with its reason."""
        return [plugin for plugin in self.plugins if plugin.error]


def component(table: Mapping[str, type[C]], config: Config) -> C:
    """The component that a configuration's tag names, holding that configuration (which a recipe validated)."""
    tag: str = getattr(config, next(iter(table.values())).tag)
    return table[tag](config)


@functools.cache
def installed() -> Registry:
    """The registry of this process's installed plugins."""
    return build(entry_points(group=GROUP))


def build(points: Iterable[EntryPoint]) -> Registry:
    """Load ``points`` into a registry: sorted by name, so that the order of installation does not matter."""
    registry = Registry()
    ordered = sorted(points, key=lambda point: (point.name, _dist(point)[0]))
    clashes = _clashes(ordered)
    for point in ordered:
        distribution, version = _dist(point)
        plugin = Plugin(point.name, distribution, version, point.value)
        try:
            if point.name in clashes:
                raise PluginError(
                    f"the name '{point.name}' is claimed by {clashes[point.name]}", fix="uninstall all but one"
                )
            _collect(registry, plugin, _load(point))
        except Exception as error:  # a plugin may fail in any way; it is reported, never swallowed
            registry.plugins.append(Plugin(*_key(plugin), error=_reason(error)))
        else:
            registry.plugins.append(plugin)
    return registry


def _dist(point: EntryPoint) -> tuple[str, str]:
    return _name_and_version(point.dist) if point.dist else ("unknown", "?")


@functools.cache
def _name_and_version(distribution: Distribution) -> tuple[str, str]:
    """Read once for each distribution: both parse its whole metadata."""
    return distribution.name, distribution.version


def _key(plugin: Plugin) -> tuple[str, str, str, str]:
    return plugin.name, plugin.distribution, plugin.version, plugin.module


def _clashes(points: list[EntryPoint]) -> dict[str, str]:
    claims: dict[str, set[str]] = {}
    for point in points:
        claims.setdefault(point.name, set()).add(" ".join(_dist(point)))
    return {name: " and by ".join(sorted(who)) for name, who in claims.items() if len(who) > 1}


def _load(point: EntryPoint) -> Manager:
    """One plugin alone in a manager of its own, with its hooks checked."""
    module = importlib.import_module(point.value) if not point.attr else point.load()
    manager = Manager(specs.DiscoverySpecs)
    manager.register(module)
    _check_names(module)
    manager.check_pending()
    return manager


def _check_names(module: Any) -> None:
    known = {name for name in vars(specs.DiscoverySpecs) if name.startswith("qplug_")}
    marked = [
        name for name in dir(module) if name.startswith("qplug_") and hasattr(getattr(module, name), "qplug_impl")
    ]
    if not marked:
        raise PluginError("implements no qplug hook", fix=f"mark one of {', '.join(sorted(known))} with @hookimpl")


def _collect(registry: Registry, plugin: Plugin, manager: Manager) -> None:
    """Check everything that the plugin offers, then add it: all of it or nothing."""
    hook = manager.hook
    found: list[tuple[str, dict[str, Any], str, Any]] = []
    for technique in _flat(hook.qplug_techniques()):
        check_technique(technique, plugin.name)
        found.append(("technique", registry.techniques, technique.name(), technique))
    found += [("model", registry.models, source.name(), source) for source in _flat(hook.qplug_models())]
    found += [("dataset", registry.datasets, source.name(), source) for source in _flat(hook.qplug_datasets())]
    found += [("metric", registry.metrics, f"{plugin.name}.{m.name}", m) for m in _flat(hook.qplug_metrics())]
    for kind, table, offers in (
        ("backend", registry.backends, hook.qplug_backends()),
        ("quantizer", registry.quantizers, hook.qplug_quantizers()),
    ):
        found += [(kind, table, name, value) for offer in offers for name, value in offer.items()]
    for kind, _, name, offer in found:
        if kind == "backend" and not isinstance(offer, BackendOffer):
            raise PluginError(f"qplug_backends: expected a qplug.BackendOffer for '{name}', got {offer!r}")
    blocks = _flat(hook.qplug_blocks())
    for path in blocks:
        if not (isinstance(path, str) and BLOCK.fullmatch(path)):
            raise PluginError(f"qplug_blocks: expected the path of a class as 'module:Class', got {path!r}")
    seen: set[str] = set()
    for kind, table, name, _ in found:
        if name in table:
            raise PluginError(f"{kind} '{name}' is already offered by {registry.owners[f'{kind}:{name}']}")
        if f"{kind}:{name}" in seen:
            raise PluginError(f"{kind} '{name}' is offered twice")
        seen.add(f"{kind}:{name}")
    for kind, table, name, value in found:
        table[name] = value
        registry.owners[f"{kind}:{name}"] = plugin
    registry.adapters += _flat(hook.qplug_adapters())
    registry.blocks += blocks


def _flat(results: list[Iterable[Any]]) -> list[Any]:
    return [item for result in results for item in result]


def check_technique(technique: type[Technique], prefix: str | None = None) -> None:
    """Refuse a technique whose tag, configuration or hooks are not what the core will call; raises ``PluginError``."""
    label = getattr(technique, "__name__", repr(technique))
    if not (isinstance(technique, type) and issubclass(technique, Technique)):
        raise PluginError(f"{label} is not a subclass of qplug.Technique")
    field_ = technique.Config.model_fields.get("use") if hasattr(technique, "Config") else None
    if field_ is None or not technique.name():
        raise PluginError(f"{label}.Config has no field use: Literal['<plugin>.<technique>']")
    if prefix is not None and not technique.name().startswith(f"{prefix}."):
        raise PluginError(f"technique '{technique.name()}' must be named '{prefix}.…', after its entry point")
    marked = [n for n in dir(technique) if hasattr(getattr(technique, n), "qplug_impl")]
    if not marked:
        raise PluginError(f"technique '{technique.name()}' implements no hook", fix="mark its methods with @hookimpl")
    manager, instance = _specifications(), technique.__new__(technique)
    try:
        manager.register(instance, name=label)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        _specifications.cache_clear()  # it holds a part of what it refused
        raise PluginError(f"technique '{technique.name()}': {_said(error)}") from error
    manager.unregister(instance)


@functools.cache
def _specifications() -> Manager:
    """The hooks of a run, to hold one technique after the other against them."""
    return Manager(specs.RunSpecs)


def _said(error: pluggy.PluginValidationError) -> str:
    """pluggy's message on one line, without the memory address that it ends with."""
    return " ".join(str(error).split()).partition(" in plugin <")[0]


def _reason(error: Exception) -> str:
    if isinstance(error, PluginError):
        return str(error)
    if isinstance(error, pluggy.PluginValidationError):
        return _said(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"


def backend_of(name: str, registry: Registry) -> Backend:
    """The backend of that name; raises ``InputError`` where something that it needs is not installed."""
    offer = registry.backends[name]
    for extra in offer.needs:
        if extra.missing:
            raise InputError(f"backend '{name}' needs the package '{extra.module}'", fix=extra.install)
    module, _, cls = offer.path.partition(":")
    backend: Backend = getattr(importlib.import_module(module), cls)()
    return backend
