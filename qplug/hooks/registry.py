"""Entry points → ``Registry``: discover, load, classify. A plugin that fails is a row; it takes nothing else down."""

from __future__ import annotations

import functools
import importlib
import io
import os
import traceback
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import TYPE_CHECKING, TypeVar

import pluggy

from qplug.core.component import Component, Config, DataSource, ModelSource, Technique
from qplug.core.errors import InputError, PluginError
from qplug.core.types import Adapter, BackendOffer, Metric
from qplug.hooks.offers import Offers, read_offers

if TYPE_CHECKING:
    from qplug.quantization.backends import Backend

GROUP = "qplug"
CORE = ("core", "qplug.hooks.builtin")
"""The core's own entry point, name and module; its names are taken before anyone else's."""
OURS = ("<frozen ", os.path.dirname(importlib.__file__), os.path.dirname(__file__))
"""Where the files begin that import a plugin: what it gets wrong is not wrong there."""
C = TypeVar("C", bound=Component)


@dataclass(frozen=True)
class Plugin:
    """One entry point.

    Attributes:
        name: of the entry point; the prefix of its techniques.
        distribution: the name of the distribution that brings it.
        version: of the distribution.
        module: what the entry point names.
        error: why it cannot be used; empty where it can.
        printed: what it wrote to standard output while it was imported, shortened.
    """

    name: str
    distribution: str
    version: str
    module: str
    error: str = ""
    printed: str = ""

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
    tasks: dict[str, str] = field(default_factory=dict)
    adapters: list[Adapter] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    metrics: dict[str, Metric] = field(default_factory=dict)
    owners: dict[str, Plugin] = field(default_factory=dict)
    """Who offers what: keys are ``technique:NAME``, ``model:NAME``, ``dataset:NAME``, ``backend:NAME``, …"""

    def add(self, plugin: Plugin, offers: Offers) -> None:
        """Take in what ``plugin`` offers."""
        for kind, name, value in offers.named:
            getattr(self, f"{kind}s")[name] = value
            self.owners[f"{kind}:{name}"] = plugin
        self.adapters += offers.adapters
        self.blocks += offers.blocks

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
    """Load ``points`` into a registry: the core first, the others by name, whatever the order of installation."""
    registry = Registry()
    ordered = sorted(points, key=lambda point: (not _is_core(point), point.name, _dist(point)[0]))
    clashes = _clashes(ordered)
    loaded = [_load(point, "" if _is_core(point) else clashes.get(point.name, "")) for point in ordered]
    claims: dict[tuple[str, str], list[Plugin]] = {}
    for plugin, offers in loaded:
        for claim in offers.claims():
            claims.setdefault(claim, []).append(plugin)
    for plugin, offers in loaded:
        error = plugin.error or _claimed(plugin, offers, claims)
        registry.plugins.append(replace(plugin, error=error))
        if not error:
            registry.add(registry.plugins[-1], offers)
    return registry


def _load(point: EntryPoint, clash: str) -> tuple[Plugin, Offers]:
    """A plugin and what it offers; nothing where it fails, in whatever way. What it prints is kept from the screen."""
    plugin = Plugin(point.name, *_dist(point), point.value, error=clash)
    if clash:
        return plugin, Offers()
    offers, error, printed = Offers(), "", io.StringIO()
    with redirect_stdout(printed):
        try:
            offers = read_offers(point)
        except (Exception, SystemExit, GeneratorExit) as failure:
            error = _reason(failure)
    return replace(plugin, error=error, printed=" ".join(printed.getvalue().split())[:200]), offers


def _is_core(point: EntryPoint) -> bool:
    return (point.name, point.value) == CORE


def _dist(point: EntryPoint) -> tuple[str, str]:
    return _name_and_version(point.dist) if point.dist else ("unknown", "?")


@functools.cache
def _name_and_version(distribution: Distribution) -> tuple[str, str]:
    """Read once for each distribution: both parse its whole metadata."""
    return distribution.name, distribution.version


def _clashes(points: list[EntryPoint]) -> dict[str, str]:
    """Name of an entry point that more than one distribution claims → why it is refused."""
    claims: dict[str, set[str]] = {}
    for point in points:
        claims.setdefault(point.name, set()).add(" ".join(_dist(point)))
    reserved = {point.name for point in points if _is_core(point)}
    return {
        name: f"the name '{name}' is qplug's own\n  → give the entry point another name"
        if name in reserved
        else f"the name '{name}' is claimed by {' and by '.join(sorted(who))}\n  → uninstall all but one"
        for name, who in claims.items()
        if len(who) > 1 or name in reserved
    }


def _claimed(plugin: Plugin, offers: Offers, claims: Mapping[tuple[str, str], list[Plugin]]) -> str:
    """Why a plugin is refused for a name that it shares with another; empty where it shares none."""
    for kind, name in offers.claims():
        owners = claims[kind, name]
        if len(owners) > 1 and (plugin.name, plugin.module) != CORE:
            if any((owner.name, owner.module) == CORE for owner in owners):
                return f"{kind} '{name}' is qplug's own\n  → give it another name"
            return f"{kind} '{name}' is claimed by {' and by '.join(map(str, owners))}\n  → uninstall all but one"
    return ""


def _reason(error: BaseException) -> str:
    if isinstance(error, PluginError):
        return str(error)
    if isinstance(error, pluggy.PluginValidationError):  # on one line, without the address that it ends with
        return " ".join(str(error).split()).partition(" in plugin <")[0]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(OURS)]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def backend_of(name: str, registry: Registry) -> Backend:
    """The backend of that name; raises ``InputError`` where something that it needs is not installed."""
    offer = registry.backends[name]
    for extra in offer.needs:
        if extra.missing:
            raise InputError(f"backend '{name}' needs the package '{extra.module}'", fix=extra.install)
    module, _, cls = offer.path.partition(":")
    backend: Backend = getattr(importlib.import_module(module), cls)()
    return backend
