"""What a recipe names, held against what is installed; runs on the tree, so that it reports beside the validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from qplug.core.component import Component
from qplug.core.errors import Problem
from qplug.core.text import did_you_mean
from qplug.hooks.registry import Registry
from qplug.recipe.yaml_tree import Node, Place

Loc = tuple[str | int, ...]


@dataclass
class Named:
    """The components that a recipe names, by kind, and the locations whose component is not known."""

    models: dict[str, type[Component]] = field(default_factory=dict)
    datasets: dict[str, type[Component]] = field(default_factory=dict)
    techniques: dict[str, type[Component]] = field(default_factory=dict)
    tags: dict[Loc, str] = field(default_factory=dict)
    unknown: set[Loc] = field(default_factory=set)

    def in_location(self, loc: Loc) -> bool:
        """Whether pydantic's locations have the tag behind ``loc``: it does so for unions, and one member is none."""
        table = {"model": self.models, "data": self.datasets, "techniques": self.techniques}
        return loc in self.tags and len(table[str(loc[0])]) > 1


def check_names(root: Node, registry: Registry, problems: list[tuple[Place, Problem]]) -> Named:
    """Look up every source and technique; what is not installed is a problem."""
    named = Named()
    for loc, node, tag, kind in _places(root):
        if not isinstance(node.value, dict):
            continue  # the validation says what was expected here
        table, found = _tables(registry, named, kind)
        tag_node = node.child(tag)
        known = ", ".join(sorted(table)) or "none is installed"
        if tag_node is None:
            what = f"{dotted(loc)}: missing the key '{tag}', which says which {kind} it is"
            problems.append((node.place, node.place.problem(what, f"{kind}s: {known}")))
            named.unknown.add(loc)
        elif not isinstance(tag_node.value, str) or tag_node.value not in table:
            word = tag_node.value if isinstance(tag_node.value, str) else ""
            what, fix = (
                unknown(kind, word, registry, table) if word else (f"expected text, received {tag_node.describe()}", "")
            )
            problems.append(
                (tag_node.place, tag_node.place.problem(f"{dotted((*loc, tag))}: {what}", fix or f"{kind}s: {known}"))
            )
            named.unknown.add(loc)
        else:
            found[tag_node.value] = table[tag_node.value]
            named.tags[loc] = tag_node.value
    _check_ranges(root, registry, named, problems)
    _check_needs(root, named, problems)
    return named


def _places(root: Node) -> Iterator[tuple[Loc, Node, str, str]]:
    """Every place of a tagged component: location, node, tag field, what it is."""
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
    """What is wrong with a name that nothing installed has, and what to do."""
    broken = registry.broken()
    prefix = word.partition(".")[0]
    if kind == "technique":
        for plugin in broken:
            if plugin.name == prefix:
                what = f"'{word}' belongs to plugin {plugin}, which cannot be used: {plugin.error}"
                return what, "repair or reinstall it; 'qplug plugins' lists all"
    fix = did_you_mean(word, known)
    if not fix and broken and kind != "technique":
        fix = f"not loaded: {', '.join(str(plugin) for plugin in broken)}; 'qplug plugins' says why"
    if not fix and kind == "technique":
        fix = "'qplug techniques' lists the installed ones; is the plugin installed?"
    return f"there is no {kind} '{word}'", fix


def _check_ranges(root: Node, registry: Registry, named: Named, problems: list[tuple[Place, Problem]]) -> None:
    node = root.child("techniques")
    if node is None or not isinstance(node.value, list) or not node.value:
        return
    if sum(loc[0] == "techniques" for loc in named.tags) < len(node.value):
        return  # one that is not known may be it
    if any(estimates_ranges(technique) for technique in named.techniques.values()):
        return
    able = sorted(name for name, technique in registry.techniques.items() if estimates_ranges(technique))
    what = "techniques: none of them estimates ranges, so no site would get a quantizer"
    problems.append((node.key, node.key.problem(what, f"add one of: {', '.join(able) or 'none is installed'}")))


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


def estimates_ranges(technique: type[Component]) -> bool:
    """Whether a technique implements ``qplug_make_quantizer``."""
    return implements(technique, "qplug_make_quantizer")


def implements(technique: type[Component], hook: str) -> bool:
    """Whether a technique implements ``hook``."""
    return hasattr(getattr(technique, hook, None), "qplug_impl")


def dotted(loc: Loc) -> str:
    """A location as ``--set`` writes it."""
    return ".".join(str(step) for step in loc)
