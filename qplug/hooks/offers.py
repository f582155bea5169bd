"""Entry point → ``Offers``: one plugin alone, imported, checked, and asked what it offers."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from qplug.core.component import DataSource, ModelSource
from qplug.core.errors import PluginError
from qplug.core.types import Adapter, BackendOffer, Metric
from qplug.hooks import specs
from qplug.hooks.checks import STATED, check_api, check_hooks, check_technique, hook_names
from qplug.hooks.manager import Manager

CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
RESERVED = "accounting bits bops cache coverage finetune finetuned float images qat quantized seconds size".split()
"""What the names of qplug's own metrics begin with, before the dot."""


@dataclass
class Offers:
    """What one plugin offers: ``named`` holds (kind, name, value); adapters and blocks have no names."""

    named: list[tuple[str, str, Any]] = field(default_factory=list)
    adapters: list[Adapter] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)

    def claims(self) -> list[tuple[str, str]]:
        """(kind, name) of all that only one plugin can offer; adapters by the class that they replace."""
        return [(kind, name) for kind, name, _ in self.named] + [("adapter", adapter.path) for adapter in self.adapters]


def read_offers(point: EntryPoint) -> Offers:
    """Import a plugin and ask it; raises ``PluginError``, or whatever the plugin raises."""
    door = _import(point)
    if not check_hooks(door, specs.DiscoverySpecs, point.value):
        names = ", ".join(sorted(hook_names(specs.DiscoverySpecs)))
        raise PluginError("implements no qplug hook", fix=f"mark one of {names} with @hookimpl")
    manager = Manager(specs.DiscoverySpecs)
    manager.register(door)
    manager.check_pending()
    offers = Offers()
    for technique in _all(manager, "qplug_techniques"):
        check_technique(technique, point.name)
        offers.named.append(("technique", technique.name(), technique))
    for kind, hook, base in (("model", "qplug_models", ModelSource), ("dataset", "qplug_datasets", DataSource)):
        for source in _all(manager, hook):
            if not (isinstance(source, type) and issubclass(source, base) and hasattr(source, "Config")):
                raise PluginError(f"{hook}: expected a subclass of qplug.{base.__name__} with a Config, got {source!r}")
            offers.named.append((kind, source.name(), source))
    for metric in _all(manager, "qplug_metrics"):
        if not (isinstance(metric, Metric) and callable(metric.compute)):
            raise PluginError(f"qplug_metrics: expected a qplug.Metric with a function, got {metric!r}")
        if point.name in RESERVED:
            raise PluginError(
                f"metric '{point.name}.{metric.name}' is named as qplug's own '{point.name}.…'",
                fix="give the entry point another name",
            )
        offers.named.append(("metric", f"{point.name}.{metric.name}", metric))
    for name, offer in _items(manager, "qplug_backends"):
        if not isinstance(offer, BackendOffer):
            raise PluginError(f"qplug_backends: expected a qplug.BackendOffer for '{name}', got {offer!r}")
        offers.named.append(("backend", name, offer))
    for name, path in _items(manager, "qplug_tasks"):
        offers.named.append(("task", name, _class_path("qplug_tasks", path)))
    for name, path in _items(manager, "qplug_quantizers"):
        offers.named.append(("quantizer", name, _class_path("qplug_quantizers", path)))
    for adapter in _all(manager, "qplug_adapters"):
        if not isinstance(adapter, Adapter):
            raise PluginError(f"qplug_adapters: expected a qplug.Adapter, got {adapter!r}")
        offers.adapters.append(adapter)
    offers.blocks = [_class_path("qplug_blocks", path) for path in _all(manager, "qplug_blocks")]
    _refuse_twice(offers)
    return offers


def _import(point: EntryPoint) -> object:
    """The module, or the object in it, that the entry point names; its hook API is checked first."""
    try:
        door = point.load()
    except ImportError:  # a plugin for another hook API may import names that this qplug lacks
        check_api(_stated_in_source(point.module))
        raise
    module = importlib.import_module(point.module)
    check_api(getattr(door, STATED, getattr(module, STATED, specs.HOOK_API[0])))
    return door


def _stated_in_source(module: str) -> object:
    """The hook API that a module states, read without running it; the present one where that cannot be found."""
    try:
        spec = importlib.util.find_spec(module)
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8")) if spec and spec.origin else ast.Module([], [])
    except (ImportError, OSError, SyntaxError, ValueError):
        return specs.HOOK_API[0]
    for line in tree.body:
        if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant):
            names = [target.id for target in line.targets if isinstance(target, ast.Name)]
            if STATED in names:
                return line.value.value
    return specs.HOOK_API[0]


def _answer(manager: Manager, hook: str) -> Any:
    """What the plugin's implementation returns; ``None`` where it has none."""
    caller = getattr(manager.hook, hook)
    if not caller.get_hookimpls():
        return None
    results = caller()
    if not results:
        raise PluginError(f"{hook} returned nothing", fix="return what it offers; an empty list offers nothing")
    return results[0]


def _all(manager: Manager, hook: str) -> list[Any]:
    answer = _answer(manager, hook)
    if answer is not None and (isinstance(answer, (str, Mapping)) or not isinstance(answer, Iterable)):
        raise PluginError(f"{hook}: expected a list, got {answer!r}")
    return list(answer or ())


def _items(manager: Manager, hook: str) -> list[tuple[str, Any]]:
    answer = _answer(manager, hook)
    if answer is not None and not isinstance(answer, Mapping):
        raise PluginError(f"{hook}: expected a mapping from names, got {answer!r}")
    return list((answer or {}).items())


def _class_path(hook: str, path: object) -> str:
    if not (isinstance(path, str) and CLASS.fullmatch(path)):
        raise PluginError(f"{hook}: expected the path of a class as 'module:Class', got {path!r}")
    return path


def _refuse_twice(offers: Offers) -> None:
    seen: set[tuple[str, str]] = set()
    for kind, name in offers.claims():
        if (kind, name) in seen:
            raise PluginError(f"{kind} '{name}' is offered twice")
        seen.add((kind, name))
