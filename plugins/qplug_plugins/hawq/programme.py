"""The integer programme: costs of errors, amounts that bits need, and limits of these amounts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qplug import Limit, choose_bits

Totals = Mapping[str, float]
"""Name of a limit → the amount of the whole model, in the unit of the limit."""

REST = ""
"""The group of all layers without a choice, so that limits, also in errors, are those of the whole model."""


@dataclass(frozen=True)
class Bound:
    """An upper bound of ``value``, in the unit of the limit.

    With ``share``, it is a fraction between all layers at their fewest bits (0) and all at their most (1), as in the
    authors' code.
    """

    value: float
    share: bool

    @classmethod
    def parse(cls, text: float | str) -> Bound:
        """The bound given as a number, or as a percentage such as ``50%``."""
        return cls(float(text.rstrip("%")) / 100, True) if isinstance(text, str) else cls(text, False)

    def between(self, least: float, most: float) -> float:
        """The bound in the unit of the limit, for a model whose amount is between ``least`` and ``most``."""
        return least + self.value * (most - least) if self.share else self.value


def solve(
    costs: Mapping[str, Mapping[int, float]],
    candidates: Sequence[int],
    totals: Callable[[Mapping[str, int]], Totals],
    bounds: Mapping[str, Bound],
) -> dict[str, int]:
    """min Σ Ω_i(b_i) such that the model's amounts at these bits are within every bound (HAWQ-V3, section 3.4).

    Amounts are sums over layers, so the share of a layer follows from changing the bits of this layer only.

    Args:
        costs: layer → bits → Ω.
        candidates: bits.
        totals: layer → bits → the amounts of the whole model.
        bounds: bounds of amounts, at least one, by the names in ``totals``.

    Returns:
        layer → bits.

    Raises:
        InputError: no choice is within a bound, or within all of them; names the least possible amount.
    """
    fewest, most = min(candidates), max(candidates)
    least = dict.fromkeys(costs, fewest)
    base, top = totals(least), totals(dict.fromkeys(costs, most))
    amounts = {layer: {b: totals({**least, layer: b}) for b in candidates if b != fewest} for layer in costs}

    def limit(name: str, bound: Bound) -> Limit:
        loads = {layer: {b: total[name] - base[name] for b, total in row.items()} for layer, row in amounts.items()}

        def load(group: str, bits: int) -> float:
            return base[name] if group == REST else loads[group].get(bits, 0.0)

        return Limit(f"hawq.hawq_v3, {name}", load, bound.between(base[name], top[name]))

    rest = {REST: {fewest: 0.0}}
    chosen = choose_bits({**costs, **rest}, [limit(name, bound) for name, bound in bounds.items()])
    return {layer: chosen[layer] for layer in costs}
