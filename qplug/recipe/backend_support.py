"""Check of a recipe against the limits of its backend, on the YAML tree as in ``check``."""

from __future__ import annotations

from collections.abc import Iterator

from qplug.core.component import Technique
from qplug.core.errors import Problem
from qplug.core.types import BackendOffer, Granularity
from qplug.hooks.registry import Registry
from qplug.recipe.check import Named, dotted, implements, unknown
from qplug.recipe.schema import Recipe, TensorConfig, WeightConfig
from qplug.recipe.yaml_tree import Node, Place

RECIPE_BITS = range(2, 17)
"""Bits that a recipe may have; the validation refuses all others."""


def check_backend(root: Node, registry: Registry, named: Named, problems: list[tuple[Place, Problem]]) -> None:
    """Look up the backend, and add a problem for everything that it does not support."""
    node = root.child("backend")
    name = Recipe.model_fields["backend"].default if node is None else node.value
    if not isinstance(name, str):
        return  # the validation reports the expected type
    place = root.place if node is None else node.place
    if name not in registry.backends:
        what, fix = unknown("backend", name, registry, registry.backends)
        fix = fix or f"installed backends: {', '.join(sorted(registry.backends)) or 'none'}"
        problems.append((place, place.problem(f"backend: {what}", fix)))
        return
    offer = registry.backends[name]
    for extra in offer.needs:
        if extra.missing:
            what = f"backend: '{name}' needs the package '{extra.module}'"
            problems.append((place, place.problem(what, extra.install)))
    refused = *_tensors(root, offer), *_scope(root, offer), *_techniques(root, offer, named), *_bits(root, offer, named)
    for where, what, fix in refused:
        problems.append((where, where.problem(what.format(backend=f"backend '{name}'"), fix)))


def _tensors(root: Node, offer: BackendOffer) -> Iterator[tuple[Place, str, str]]:
    """Bits, granularity and symmetry of weights, activations and overrides; a missing key has its default."""
    low, high = offer.bits
    quantize = root.child("quantize")
    overrides = quantize.child("overrides") if quantize is not None else None
    count = len(overrides.value) if overrides is not None and isinstance(overrides.value, list) else 0
    for loc in ("weights",), ("activations",), *(("overrides", index) for index in range(count)):
        section = quantize
        for step in loc:
            section = section.child(step) if section is not None else None
        if section is None:
            continue
        path = dotted(("quantize", *loc))
        bits = section.child("bits")
        if bits is not None and bits.value in RECIPE_BITS and not offer.has(bits.value):
            what = f"{path}.bits: {{backend}} has {low} to {high} bits, received {bits.value}"
            yield bits.place, what, "change the bits or the backend"
        defaults = {"weights": WeightConfig, "activations": TensorConfig}.get(str(loc[0]))
        node = section.child("granularity")
        default = defaults.model_fields["granularity"].default.value if defaults else None
        granularity, supported = default if node is None else node.value, [g.value for g in offer.granularities]
        if granularity in [g.value for g in Granularity] and granularity not in supported:
            place = section.key if node is None else node.place
            yield place, f"{path}.granularity: {{backend}} has no {granularity}", f"it has {', '.join(supported)}"
        symmetric = section.child("symmetric")
        if symmetric is not None and symmetric.value is False and not offer.asymmetric:
            yield symmetric.place, f"{path}.symmetric: {{backend}} has no zero points", "remove the key"
        number = section.child("number_format")
        formats = offer.number_formats
        if number is not None and formats is not None and number.value not in formats:
            what = f"{path}.number_format: {{backend}} has no {number.value}"
            yield number.place, what, f"it has {', '.join(formats)}"
        zero = section.child("zero_point")
        if zero is not None and zero.value == "float" and not offer.float_zero_points:
            yield zero.place, f"{path}.zero_point: {{backend}} has no float zero points", "use 'zero_point: integer'"


def _scope(root: Node, offer: BackendOffer) -> Iterator[tuple[Place, str, str]]:
    for name in "softmax", "layernorm":
        node: Node | None = root
        for step in ("quantize", "scope", name):
            node = node.child(step) if node is not None else None
        if node is not None and node.value is True and name not in offer.scope:
            what = f"quantize.scope.{name}: {{backend}} cannot quantize these inputs"
            yield node.place, what, "set it to false or change the backend"


def _techniques(root: Node, offer: BackendOffer, named: Named) -> Iterator[tuple[Place, str, str]]:
    for loc, tag in named.tags.items():
        refused = [hook for hook in offer.without if loc[0] == "techniques" and implements(named.techniques[tag], hook)]
        if not refused:
            continue
        node = root
        for step in (*loc, "use"):
            node = node.child(step) or node
        what = f"{dotted(loc)}: {{backend}} cannot run {refused[0]}, which '{tag}' implements"
        yield node.place, what, "remove the technique or change the backend"


def _bits(root: Node, offer: BackendOffer, named: Named) -> Iterator[tuple[Place, str, str]]:
    """Bits that a technique may allocate, given in the recipe or by default."""
    low, high = offer.bits
    for loc, tag in named.tags.items():
        technique = named.techniques.get(tag)
        if loc[0] != "techniques" or technique is None or not issubclass(technique, Technique):
            continue
        node = root
        for step in loc:
            node = node.child(step) or node
        for key in technique.allocates:
            given = node.child(key)
            value = technique.Config.model_fields[key].default if given is None else given.value
            items = value if isinstance(value, (list, tuple)) else [value]
            widths = [item.value if isinstance(item, Node) else item for item in items]
            unsupported = [bits for bits in widths if isinstance(bits, int) and bits in RECIPE_BITS]
            unsupported = [bits for bits in unsupported if not offer.has(bits)]
            if unsupported:
                place = (node.child("use") or node).place if given is None else given.place
                allocates = f"'{tag}' may allocate {unsupported[0]}{' by default' if given is None else ''}"
                what = f"{dotted((*loc, key))}: {{backend}} has {low} to {high} bits, {allocates}"
                yield place, what, f"set {key} to bits that the backend has, or change the backend"
