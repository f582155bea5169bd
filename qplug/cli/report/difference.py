"""Where two plans differ, as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qplug.cli.report.screen import Table

if TYPE_CHECKING:
    from qplug.analysis.compare.plans import PlanDifference
    from qplug.core.storage.run_folder import Run


def difference_tables(found: Sequence[PlanDifference], ours: Run, theirs: Run) -> list[Table]:
    """Where two plans differ: by kind, and site by site."""
    kinds = Counter((difference.kind, what) for difference in found for what in difference.what)
    by_kind = [(kind, what, str(count)) for (kind, what), count in sorted(kinds.items())]
    rows = [
        (d.site, ", ".join(d.what), d.ours, d.theirs, "–" if d.scale_ratio is None else f"{d.scale_ratio:.3g}")
        for d in found
    ]
    sites = {row["site"]["name"] for run in (ours, theirs) for row in run.plan["decisions"]}
    notes = [f"A: {ours.folder}", f"B: {theirs.folder}", *other_things(ours, theirs)]
    summary = f"{len(found)} of {len(sites)} sites differ"
    columns = ("site", "differs in", "A", "B", "scale A/B")
    return [
        Table(f"A against B: {summary}", ("kind", "differs in", "sites"), by_kind, ("sites",), notes),
        Table("Sites", columns, rows, columns[-1:]) if rows else Table("", notes=["the decisions are the same"]),
    ]


def other_things(ours: Run, theirs: Run) -> list[str]:
    """What must be known of two runs beside their decisions."""
    notes = []
    if ours.lock["hashes"]["model"] != theirs.lock["hashes"]["model"]:
        notes.append("the float models differ, so scales may differ for that alone")
    changes = [Counter(change["technique"] for change in run.plan["changes"]) for run in (ours, theirs)]
    if ours.plan["changes"] != theirs.plan["changes"]:
        words = [", ".join(f"{name} × {count}" for name, count in its.items()) or "none" for its in changes]
        notes.append(f"changes before quantization: A {words[0]}; B {words[1]}")
    return notes
