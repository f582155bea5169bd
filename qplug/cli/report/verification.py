"""The checks of a run folder, as values and as a table."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qplug.cli.report.screen import Table

if TYPE_CHECKING:
    from qplug.analysis.verify import Verification

STYLES: dict[int | str, str] = {"same": "green", "differs": "bold red", "not checked": "yellow"}


def verification_summary(found: Verification) -> dict[str, Any]:
    """One run folder of ``qplug verify --json``."""
    return {"folder": str(found.folder), "holds": found.holds, "checks": [asdict(check) for check in found.checks]}


def verification_table(found: Verification) -> Table:
    """A row for each check; the title says the result."""
    rows = [(check.what, check.state, check.detail) for check in found.checks]
    unchecked = [check.what for check in found.checks if check.state == "not checked" and check.what != "other files"]
    same = "the outputs are those of the run, by other code" if found.proven_by_other_code else "nothing differs"
    result = same if found.holds else "not what the run wrote or measured"
    if found.holds and unchecked:
        result += f"; not checked: {', '.join(unchecked)}"
    notes = ["digests show damage and edits by accident; they are no signature"]
    return Table(f"{found.folder}: {result}", ("check", "result", "details"), rows, notes=notes, styles=STYLES)
