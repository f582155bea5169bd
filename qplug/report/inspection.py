"""A model's sites, as values and as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qplug.report.screen import Table

if TYPE_CHECKING:
    from qplug.pipeline import Inspection


def inspection(found: Inspection, model: str) -> dict[str, Any]:
    """Sites with kinds, shapes and MACs, and what no site covers."""
    sites = [
        {
            "name": s.name,
            "kind": s.kind.value,
            "module": s.module,
            "role": s.role,
            "shape": list(s.shape),
            "macs": s.macs,
        }
        for s in found.sites
    ]
    return {
        "model": model,
        "sites": sites,
        "total_macs": found.total_macs,
        "coverage": found.coverage,
        "float_macs": dict(found.float_macs),
        "float_norms": dict(found.float_norms),
    }


def inspection_tables(found: Inspection, model: str) -> list[Table]:
    """Every site, the kinds, and the coverage."""
    rows = [(s.name, s.kind.value, "×".join(map(str, s.shape)), f"{s.macs:,}") for s in found.sites]
    kinds: dict[str, list[int]] = {}
    for site in found.sites:
        count = kinds.setdefault(site.kind.value, [0, 0])
        count[0] += 1
        count[1] += site.numel
    by_kind = [(kind, str(count), f"{numel:,}") for kind, (count, numel) in kinds.items()]
    notes = [
        f"MACs of one image: {found.total_macs:,}; both operands have sites in {found.coverage:.1%} of them",
        *(f"stays in float: {name}, {macs:,} MACs" for name, macs in found.float_macs.items()),
        *(f"stays in float: {name}, a BatchNorm that {reason}" for name, reason in found.float_norms.items()),
    ]
    return [
        Table(f"Sites of {model}", ("site", "kind", "shape", "MACs"), rows, right=("shape", "MACs")),
        Table("Kinds", ("kind", "sites", "elements"), by_kind, right=("sites", "elements"), notes=notes),
    ]
