"""Differences between two plans, site by site."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Decisions = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class PlanDifference:
    """A site that two plans quantize differently.

    Attributes:
        site: name of the site.
        kind: kind of the site.
        what: differing parts: ``float``, ``bits``, ``quantizer``, ``technique``, ``reconstruction`` if one of
            the plans undid it, ``scale``.
        ours, theirs: decision of each plan in words; a dash if the site stays in float.
        scale_ratio: geometric mean of our scales divided by that of theirs, if both have scales.
    """

    site: str
    kind: str
    what: tuple[str, ...]
    ours: str
    theirs: str
    scale_ratio: float | None


def plan_differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[PlanDifference]:
    """Differences between two plans of ``plan.json``: in the order of the first plan, then sites of the second only."""
    our_decisions, their_decisions = _decisions(ours), _decisions(theirs)
    differences = []
    for name in dict.fromkeys((*our_decisions, *their_decisions)):
        a, b = our_decisions.get(name), their_decisions.get(name)
        what = tuple(_what(a, b))
        if what:
            kind = str((a or b or {})["site"]["kind"])
            differences.append(PlanDifference(name, kind, what, _words(a), _words(b), _ratio(a, b)))
    return differences


def _decisions(plan: Mapping[str, Any]) -> Decisions:
    return {row["site"]["name"]: row for row in plan["decisions"]}


def _what(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> Iterator[str]:
    if a is None or b is None:
        yield "float"
        return
    if a["quantizer"]["bits"] != b["quantizer"]["bits"]:
        yield "bits"
    if a["quantizer"]["kind"] != b["quantizer"]["kind"]:
        yield "quantizer"
    if a["technique"] != b["technique"]:
        yield "technique"
    if a.get("undone", "") != b.get("undone", ""):
        yield "reconstruction"
    if {**a["quantizer"], "bits": 0, "kind": ""} != {**b["quantizer"], "bits": 0, "kind": ""}:
        yield "scale"


def _words(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    reason = f", {row['reason']}" if row["reason"] else ""
    return f"{row['quantizer']['kind']} {row['quantizer']['bits']} bits by {row['technique']}{reason}"


def _ratio(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> float | None:
    if a is None or b is None:
        return None
    logs = [_mean_log(row["quantizer"]) for row in (a, b)]
    return None if logs[0] is None or logs[1] is None else math.exp(logs[0] - logs[1])


def _mean_log(quantizer: Mapping[str, Any]) -> float | None:
    """Mean logarithm of the scales, or of the base step; ``None`` if there are none."""
    scales = list(_leaves(quantizer.get("scale", quantizer.get("step"))))
    return sum(map(math.log, scales)) / len(scales) if scales and min(scales) > 0 else None


def _leaves(value: Any) -> Iterator[float]:
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, (int, float)):
        yield float(value)
