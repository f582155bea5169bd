"""A model's sites, as values and as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qplug.cli.report.run import number
from qplug.cli.report.screen import Table
from qplug.quantization.accounting import Convention

if TYPE_CHECKING:
    from qplug.analysis.inspect import Inspection


def inspection(found: Inspection, model: str) -> dict[str, Any]:
    """Sites with kinds, shapes and MACs, what no site covers, and costs by every convention."""
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
        "costs": dict(found.costs),
    }


def inspection_tables(found: Inspection, model: str, convention: Convention) -> list[Table]:
    """Every site, the kinds, the coverage, and the costs by one convention."""
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
        *_norms(found.float_norms),
    ]
    return [
        Table(f"Sites of {model}", ("site", "kind", "shape", "MACs"), rows, right=("shape", "MACs")),
        Table("Kinds", ("kind", "sites", "elements"), by_kind, right=("sites", "elements"), notes=notes),
        _costs(found.costs[convention.name], convention),
    ]


def _norms(left: Mapping[str, str]) -> Iterator[str]:
    """A line for each reason."""
    names: dict[str, list[str]] = {}
    for name, reason in left.items():
        names.setdefault(reason, []).append(name)
    for reason, some in names.items():
        if len(some) == 1:
            yield f"stays in float: {some[0]}, a BatchNorm that {reason}"
        else:
            yield f"stay in float: {len(some)} BatchNorms, each of which {reason}: {', '.join(some)}"


def _costs(by_bits: Mapping[str, Mapping[str, float]], convention: Convention) -> Table:
    first = next(iter(by_bits.values()))
    rows = [("W32A32", _figure(first["float.size_mb"]), _figure(first["float.bops_g"]))]
    rows += [(bits, _figure(cost["size_mb"]), _figure(cost["bops_g"])) for bits, cost in by_bits.items()]
    return Table("Costs", ("bits", "MB", "GBOPs"), rows, right=("MB", "GBOPs"), notes=[str(convention)])


def _figure(value: float) -> str:
    """The embedded models' bit operations are thousandths, and those of timm's are thousands."""
    return number(value, digits=1 if value >= 100 else 3)
