"""Check that all components of a recipe are installed, on the YAML tree, beside the validation by pydantic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from qplug.core.component import Component
from qplug.core.errors import Problem
from qplug.core.text import LONGEST_NAME, did_you_mean, listed, short
from qplug.hooks.registry import Registry
from qplug.recipe.yaml_tree import Node, Place

Loc = tuple[str | int, ...]

MOST_LISTED = 12
"""Installed names in a message, at most; 'qplug techniques' lists all."""


@dataclass
class Named:
    """The components that a recipe names, by kind.

    Attributes:
        models, datasets, techniques: name → class of the component.
        tags: location → name of its component.
        unknown: locations whose component is not installed.
    """

    models: dict[str, type[Component]] = field(default_factory=dict)
    datasets: dict[str, type[Component]] = field(default_factory=dict)
    techniques: dict[str, type[Component]] = field(default_factory=dict)
    tags: dict[Loc, str] = field(default_factory=dict)
    unknown: set[Loc] = field(default_factory=set)

    def in_location(self, loc: Loc) -> bool:
        """Whether pydantic inserts the tag after ``loc`` in its locations: only for a union of two or more members."""
        table = {"model": self.models, "data": self.datasets, "techniques": self.techniques}
        return loc in self.tags and len(table[str(loc[0])]) > 1


def check_names(root: Node, registry: Registry, problems: list[tuple[Place, Problem]]) -> Named:
    """Look up all sources and techniques; add a problem for each that is not installed."""
    named = Named()
    for loc, node, tag, kind in _places(root):
        if not isinstance(node.value, dict):
            continue  # the validation reports the expected type
        table, components = _tables(registry, named, kind)
        tag_node = node.child(tag)
        known = listed(sorted(table), MOST_LISTED) or "none"
        if tag_node is None:
            what = f"{dotted(loc)}: missing the key '{tag}', the name of the {kind}"
            problems.append((node.place, node.place.problem(what, f"installed {kind}s: {known}")))
            named.unknown.add(loc)
        elif not isinstance(tag_node.value, str) or tag_node.value not in table:
            word = tag_node.value if isinstance(tag_node.value, str) else ""
            what, fix = (
                unknown(kind, word, registry, table) if word else (f"expected text, received {tag_node.describe()}", "")
            )
            problems.append(
                (
                    tag_node.place,
                    tag_node.place.problem(f"{dotted((*loc, tag))}: {what}", fix or f"installed {kind}s: {known}"),
                )
            )
            named.unknown.add(loc)
        else:
            components[tag_node.value] = table[tag_node.value]
            named.tags[loc] = tag_node.value
    _check_quantizers(root, registry, named, problems)
    _check_needs(root, named, problems)
    return named


def _places(root: Node) -> Iterator[tuple[Loc, Node, str, str]]:
    """Location, node, name of the tag key, and kind of every component in the recipe."""
    if (model := root.child("model")) is not None:
        yield ("model",), model, "source", "model source"
    data = root.child("data")
    for role in ("calibration", "evaluation", "training"):
        if data is not None and (node := data.child(role)) is not None:
            yield ("data", role), node, "source", "data source"
    techniques = root.child("techniques")
    if techniques is not None and isinstance(techniques.value, list):
        for index, node in enumerate(techniques.value):
            yield ("techniques", index), node, "use", "technique"


def _tables(
    registry: Registry, named: Named, kind: str
) -> tuple[Mapping[str, type[Component]], dict[str, type[Component]]]:
    if kind == "technique":
        return registry.techniques, named.techniques
    return (registry.models, named.models) if kind == "model source" else (registry.datasets, named.datasets)


def unknown(kind: str, word: str, registry: Registry, known: Mapping[str, object]) -> tuple[str, str]:
    """Problem and fix for the name of a component that is not installed."""
    broken = registry.broken()
    prefix = word.partition(".")[0]
    if kind == "technique":
        for plugin in broken:
            if plugin.name == prefix:
                what = f"'{short(word)}' belongs to plugin {plugin}, which failed to load: {plugin.error}"
                return what, "reinstall it; 'qplug plugins' lists all plugins"
    fix = did_you_mean(word, known)
    if not fix and broken and kind != "technique":
        fix = f"not loaded: {', '.join(str(plugin) for plugin in broken)}; 'qplug plugins' shows why"
    if not fix and kind == "technique":
        fix = "'qplug techniques' lists the installed ones; is the plugin installed?"
    return f"there is no {kind} '{short(word)}'", fix


def _check_quantizers(root: Node, registry: Registry, named: Named, problems: list[tuple[Place, Problem]]) -> None:
    node = root.child("techniques")
    if node is None or not isinstance(node.value, list) or not node.value:
        return
    if sum(loc[0] == "techniques" for loc in named.tags) < len(node.value):
        return  # an unknown technique may make quantizers
    if any(makes_quantizers(technique) for technique in named.techniques.values()):
        return
    able = sorted(name for name, technique in registry.techniques.items() if makes_quantizers(technique))
    what = "techniques: none of them makes quantizers, so nothing would be quantized"
    problems.append((node.key, node.key.problem(what, f"add one of: {listed(able, MOST_LISTED) or 'none'}")))


def _check_needs(root: Node, named: Named, problems: list[tuple[Place, Problem]]) -> None:
    tables: dict[str, Mapping[str, type[Component]]]
    tables = {"model": named.models, "data": named.datasets, "techniques": named.techniques}
    for loc, tag in named.tags.items():
        component, node = tables[str(loc[0])][tag], root
        for step in (*loc, component.tag):
            node = node.child(step) or node
        for extra in component.needs:
            if extra.missing:
                what = f"{dotted(loc)}: '{tag}' needs the package '{extra.module}'"
                problems.append((node.place, node.place.problem(what, extra.install)))


def makes_quantizers(technique: type[Component]) -> bool:
    """Whether a technique implements ``qplug_make_quantizer``."""
    return implements(technique, "qplug_make_quantizer")


def implements(technique: type[Component], hook: str) -> bool:
    """Whether a technique implements ``hook``."""
    return hasattr(getattr(technique, hook, None), "qplug_impl")


def dotted(loc: Loc) -> str:
    """A location as the dotted key of ``--set``, safe to print and cut."""
    return short(".".join(short(step) for step in loc), 2 * LONGEST_NAME)
