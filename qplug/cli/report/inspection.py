"""Sites and costs of a model, as values and as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qplug.cli.report.comparison import operations
from qplug.cli.report.run import number, percent
from qplug.cli.report.screen import Table
from qplug.quantization.accounting import Convention

if TYPE_CHECKING:
    from qplug.analysis.inspect import Inspection


def inspection_summary(inspection: Inspection, model: str) -> dict[str, Any]:
    """The object that ``qplug inspect --json`` prints: sites, operations without a site, costs by every convention."""
    sites = [
        {
            "name": s.name,
            "kind": s.kind.value,
            "module": s.module,
            "role": s.role,
            "shape": list(s.shape),
            "macs": s.macs,
        }
        for s in inspection.sites
    ]
    return {
        "model": model,
        "sites": sites,
        "total_macs": inspection.total_macs,
        "coverage": inspection.coverage,
        "float_macs": dict(inspection.float_macs),
        "unknown_macs": dict(inspection.unknown),
        "bypassed": dict(inspection.bypassed),
        "float_reasons": dict(inspection.float_reasons),
        "float_norms": dict(inspection.float_norms),
        "costs": dict(inspection.costs),
    }


def inspection_tables(inspection: Inspection, model: str, convention: Convention) -> list[Table]:
    """All sites, their number by kind, the coverage, and the costs by one convention."""
    rows = [(s.name, s.kind.value, "×".join(map(str, s.shape)), f"{s.macs:,}") for s in inspection.sites]
    kinds: dict[str, list[int]] = {}
    for site in inspection.sites:
        count = kinds.setdefault(site.kind.value, [0, 0])
        count[0] += 1
        count[1] += site.numel
    by_kind = [(kind, str(count), f"{numel:,}") for kind, (count, numel) in kinds.items()]
    notes = [
        _macs(inspection),
        *(f"stays in float, in no count: {name}, {operators}" for name, operators in inspection.unknown.items()),
        *(f"cannot be quantized: {name}, as {why}" for name, why in inspection.bypassed.items()),
        *(
            f"stays in float: {name}, {macs:,} MACs{_reason(inspection.float_reasons.get(name))}"
            for name, macs in inspection.float_macs.items()
        ),
        *_norms(inspection.float_norms),
    ]
    return [
        Table(f"Sites of {model}", ("site", "kind", "shape", "MACs"), rows, right=("shape", "MACs")),
        Table("Kinds", ("kind", "sites", "elements"), by_kind, right=("sites", "elements"), notes=notes),
        _costs(inspection.costs[convention.name], convention),
    ]


def _macs(inspection: Inspection) -> str:
    if inspection.coverage is None:
        return f"{inspection.total_macs:,} MACs for one image are counted; the share that can be quantized is unknown"
    share = percent(inspection.coverage, 1)
    return f"{inspection.total_macs:,} MACs for one image; {share} of them can be quantized"


def _reason(text: str | None) -> str:
    return f": {text}" if text else ""


def _norms(reasons: Mapping[str, str]) -> Iterator[str]:
    """A line for each reason why BatchNorms cannot be folded."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        if len(names) == 1:
            yield f"stays in float: {names[0]}, a BatchNorm that {reason}"
        else:
            yield f"stay in float: {len(names)} BatchNorms, each of which {reason}: {', '.join(names)}"


def _costs(by_bits: Mapping[str, Mapping[str, float]], convention: Convention) -> Table:
    first = next(iter(by_bits.values()))
    rows = [("W32A32", number(first["float.size_mb"], digits=3), operations(first["float.bops_g"]))]
    rows += [(bits, number(cost["size_mb"], digits=3), operations(cost["bops_g"])) for bits, cost in by_bits.items()]
    return Table("Costs", ("bits", "MB", "GBOPs"), rows, right=("MB", "GBOPs"), notes=[str(convention)])
