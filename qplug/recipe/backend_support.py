"""What a recipe asks, held against what its backend cannot execute; runs on the tree, as ``check`` does."""

from __future__ import annotations

from collections.abc import Iterator

from qplug.core.component import Technique
from qplug.core.errors import Problem
from qplug.core.types import BackendOffer, Granularity
from qplug.hooks.registry import Registry
from qplug.recipe.check import Named, dotted, implements, unknown
from qplug.recipe.schema import Recipe, TensorConfig, WeightConfig
from qplug.recipe.yaml_tree import Node, Place

WIDTHS = range(2, 17)
"""Bits that any recipe may ask for; what lies outside, the validation refuses."""


def check_backend(root: Node, registry: Registry, named: Named, problems: list[tuple[Place, Problem]]) -> None:
    """Look up the backend, and add a problem for everything that it does not offer."""
    node = root.child("backend")
    name = Recipe.model_fields["backend"].default if node is None else node.value
    if not isinstance(name, str):
        return  # the validation says what was expected here
    place = root.place if node is None else node.place
    if name not in registry.backends:
        what, fix = unknown("backend", name, registry, registry.backends)
        fix = fix or f"backends: {', '.join(sorted(registry.backends)) or 'none is installed'}"
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
    """Bits, granularity and symmetry of weights, activations and overrides; what is not said is the default."""
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
        if bits is not None and bits.value in WIDTHS and not offer.has(bits.value):
            what = f"{path}.bits: {{backend}} has {low} to {high} bits, received {bits.value}"
            yield bits.place, what, "change the bits, or the backend"
        defaults = {"weights": WeightConfig, "activations": TensorConfig}.get(str(loc[0]))
        said = section.child("granularity")
        default = defaults.model_fields["granularity"].default.value if defaults else None
        asked, known = default if said is None else said.value, [g.value for g in offer.granularities]
        if asked in [g.value for g in Granularity] and asked not in known:
            place = section.key if said is None else said.place
            yield place, f"{path}.granularity: {{backend}} has no {asked}", f"it has {', '.join(known)}"
        symmetric = section.child("symmetric")
        if symmetric is not None and symmetric.value is False and not offer.asymmetric:
            yield symmetric.place, f"{path}.symmetric: {{backend}} has no zero points", "leave the line out"
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
            yield node.place, what, "set it to false, or change the backend"


def _techniques(root: Node, offer: BackendOffer, named: Named) -> Iterator[tuple[Place, str, str]]:
    for loc, tag in named.tags.items():
        refused = [hook for hook in offer.without if loc[0] == "techniques" and implements(named.techniques[tag], hook)]
        if not refused:
            continue
        node = root
        for step in (*loc, "use"):
            node = node.child(step) or node
        what = f"{dotted(loc)}: {{backend}} cannot serve {refused[0]}, which '{tag}' implements"
        yield node.place, what, "leave out the technique, or change the backend"


def _bits(root: Node, offer: BackendOffer, named: Named) -> Iterator[tuple[Place, str, str]]:
    """Bits that a technique may allocate, said or by default."""
    low, high = offer.bits
    for loc, tag in named.tags.items():
        technique = named.techniques.get(tag)
        if loc[0] != "techniques" or technique is None or not issubclass(technique, Technique):
            continue
        node = root
        for step in loc:
            node = node.child(step) or node
        for key in technique.allocates:
            said = node.child(key)
            value = technique.Config.model_fields[key].default if said is None else said.value
            asked = value if isinstance(value, (list, tuple)) else [value]
            widths = [one.value if isinstance(one, Node) else one for one in asked]
            beyond = [bits for bits in widths if isinstance(bits, int) and bits in WIDTHS and not offer.has(bits)]
            if beyond:
                place = (node.child("use") or node).place if said is None else said.place
                gives = f"'{tag}' may give {beyond[0]}{' by default' if said is None else ''}"
                what = f"{dotted((*loc, key))}: {{backend}} has {low} to {high} bits, {gives}"
                yield place, what, f"set {key} to bits that the backend has, or change the backend"
