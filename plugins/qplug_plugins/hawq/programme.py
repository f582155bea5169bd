"""The integer programme: what an error costs, what bits take, and how much of it there may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qplug import Limit, choose_bits

Totals = Mapping[str, float]
"""What is limited → how much of it the whole model takes, in the limit's own unit."""

REST = ""
"""A group for all that has no choice, so that limits, and errors about them, are those of the whole model."""


@dataclass(frozen=True)
class Bound:
    """At most ``value``, in the unit of what is limited; with ``share``, that part of the way from all layers at their
    fewest bits (0) to all at their most (1), as the authors' code has it."""

    value: float
    share: bool

    @classmethod
    def parse(cls, text: float | str) -> Bound:
        """From a number, or from a percentage as ``50%``."""
        return cls(float(text.rstrip("%")) / 100, True) if isinstance(text, str) else cls(text, False)

    def between(self, least: float, most: float) -> float:
        """The bound itself, where the model takes from ``least`` to ``most``."""
        return least + self.value * (most - least) if self.share else self.value


def solve(
    costs: Mapping[str, Mapping[int, float]],
    candidates: Sequence[int],
    totals: Callable[[Mapping[str, int]], Totals],
    bounds: Mapping[str, Bound],
) -> dict[str, int]:
    """min Σ Ω_i(b_i) so that what the model takes at these bits is within every bound (HAWQ-V3, section 3.4).

    What a model takes is a sum over its layers, so that what one layer adds is found by changing it alone.

    Args:
        costs: layer → bits → Ω.
        candidates: bits.
        totals: layer → bits → what the whole model takes.
        bounds: of what ``totals`` names; at least one.

    Returns:
        layer → bits.

    Raises:
        InputError: there is no choice within a bound, or within all of them; says the least that is possible.
    """
    fewest, most = min(candidates), max(candidates)
    least = dict.fromkeys(costs, fewest)
    base, top = totals(least), totals(dict.fromkeys(costs, most))
    found = {layer: {b: totals({**least, layer: b}) for b in candidates if b != fewest} for layer in costs}

    def limit(name: str, bound: Bound) -> Limit:
        loads = {layer: {b: total[name] - base[name] for b, total in row.items()} for layer, row in found.items()}

        def load(group: str, bits: int) -> float:
            return base[name] if group == REST else loads[group].get(bits, 0.0)

        return Limit(f"hawq.hawq_v3, {name}", load, bound.between(base[name], top[name]))

    rest = {REST: {fewest: 0.0}}
    chosen = choose_bits({**costs, **rest}, [limit(name, bound) for name, bound in bounds.items()])
    return {layer: chosen[layer] for layer in costs}
