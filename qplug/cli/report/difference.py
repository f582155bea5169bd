"""Differences between two plans, as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qplug.cli.report.screen import Table

if TYPE_CHECKING:
    from qplug.analysis.compare.plans import PlanDifference
    from qplug.pipeline.read_run import Run


def difference_tables(differences: Sequence[PlanDifference], first: Run, second: Run) -> list[Table]:
    """The differences counted by kind, then site by site. A is the first run, B the second."""
    kinds = Counter((difference.kind, what) for difference in differences for what in difference.what)
    by_kind = [(kind, what, str(count)) for (kind, what), count in sorted(kinds.items())]
    rows = [
        (d.site, ", ".join(d.what), d.ours, d.theirs, "–" if d.scale_ratio is None else f"{d.scale_ratio:.3g}")
        for d in differences
    ]
    sites = {row["site"]["name"] for run in (first, second) for row in run.plan["decisions"]}
    notes = [f"A: {first.folder}", f"B: {second.folder}", *difference_notes(first, second)]
    title = f"A and B: {len(differences)} of {len(sites)} sites differ"
    columns = ("site", "differs in", "A", "B", "scale A/B")
    return [
        Table(title, ("kind", "differs in", "sites"), by_kind, ("sites",), notes),
        Table("Sites", columns, rows, columns[-1:]) if rows else Table("", notes=["both plans are the same"]),
    ]


def difference_notes(first: Run, second: Run) -> list[str]:
    """Differences outside the plans: other float models, and other changes before quantization."""
    notes = []
    if first.lock.hashes.model != second.lock.hashes.model:
        notes.append("the float models differ; scales may differ for this reason alone")
    changes = [Counter(change["technique"] for change in run.plan["changes"]) for run in (first, second)]
    if first.plan["changes"] != second.plan["changes"]:
        words = [", ".join(f"{name} × {count}" for name, count in counts.items()) or "none" for counts in changes]
        notes.append(f"changes before quantization: A {words[0]}; B {words[1]}")
    return notes
