"""What a run found, as values and as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from qplug.cli.report.screen import Table
from qplug.core.types import OUT_OF_SCOPE
from qplug.quantization.accounting import Convention

if TYPE_CHECKING:
    from qplug.core.types import Change
    from qplug.pipeline.results import RunResult

Metrics = Mapping[str, Any]
TRAININGS = {"finetune": "fine-tuning", "qat": "QAT"}
"""Stages that train, and what tables call them."""
_OPTIONAL = {"softmax_input": "Softmax", "layernorm_input": "LayerNorm"}
_OWN = {"float", "quantized", "bits", "coverage", "images", "seconds", "cache", "finetune", "finetuned", "qat"}
_OWN |= {"accounting", "size_mb", "bops_g", "bops_convention", "peak_memory_mb"}


def summary(result: RunResult) -> dict[str, Any]:
    """Everything that ``qplug run --json`` prints."""
    return {
        "status": "done",
        "folder": str(result.folder) if result.folder else None,
        "metrics": dict(result.metrics),
        "decisions": decisions(result),
        "float_macs": dict(result.float_macs),
        "warnings": list(result.warnings),
    }


def decisions(result: RunResult) -> list[dict[str, Any]]:
    """The plan, one entry for each kind of site, quantizer and technique."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for decision in result.plan:
        key = (decision.site.kind.value, decision.quantizer.kind, decision.technique)
        groups.setdefault(key, []).append(decision.quantizer.bits)
    return [
        {
            "kind": kind,
            "sites": len(bits),
            "bits_min": min(bits),
            "bits_max": max(bits),
            "quantizer": quantizer,
            "technique": technique,
        }
        for (kind, quantizer, technique), bits in groups.items()
    ]


def summary_tables(result: RunResult, convention: Convention) -> list[Table]:
    """Decisions by kind, time, results with the costs by one convention, and what must be known to read them."""
    m = result.metrics
    bits = f"weights {number(m.get('bits.weights_mean'))}, activations {number(m.get('bits.activations_mean'))}"
    rows = [
        ("top-1, float", percent(m.get("float.top1"))),
        *([("top-1, fine-tuned", percent(m["finetuned.top1"]))] if "finetuned.top1" in m else []),
        ("top-1, quantized", percent(m.get("quantized.top1"))),
        ("agreement with float", percent(m.get("quantized.agreement"))),
        ("logit SQNR", number(m.get("quantized.logit_sqnr_db"), "dB")),
        ("size", _size(m, convention)),
        ("bit operations", number(m.get(convention.key("bops_g")), "G", 3)),
        ("both counted by", str(convention)),
        ("mean bits", bits),
        ("MACs quantized", percent(m.get("coverage.macs"))),
        ("images", f"{m.get('images.calibration', '–')} to calibrate, {m.get('images.evaluation', '–')} to measure"),
        *((title, _training(m, stage)) for stage, title in TRAININGS.items() if f"{stage}.steps" in m),
        ("time", _seconds(m)),
        ("peak memory", number(m.get("peak_memory_mb"), "MB", 0)),
    ]
    rows += [(key, number(value)) for key, value in _others(m)]
    if result.folder:
        rows.append(("run folder", str(result.folder)))
    groups = decisions(result)
    by_kind = [
        (g["kind"], str(g["sites"]), _span(g["bits_min"], g["bits_max"]), g["quantizer"], g["technique"])
        for g in groups
    ]
    notes = [f"{count} × {what}" for what, count in Counter(_change(change) for change in result.plan.changes).items()]
    protocol = "protocol: " + "; ".join(protocol_parts(groups, result))
    tables = [
        Table("Decisions", ("kind", "sites", "bits", "quantizer", "technique"), by_kind, ("sites", "bits"), notes),
        _times(m),
        Table("Results", (), rows, notes=[protocol]),
    ]
    return [table for table in tables if table.rows]


def protocol_parts(groups: Iterable[Mapping[str, Any]], result: RunResult) -> list[str]:
    """Bits of every kind of operand, and what stays in float."""
    spans: dict[str, tuple[int, int]] = {}
    for group in groups:
        low, high = spans.get(group["kind"], (group["bits_min"], group["bits_max"]))
        spans[group["kind"]] = (min(low, group["bits_min"]), max(high, group["bits_max"]))
    parts = [f"{kind} {_span(*span)} bits" for kind, span in spans.items()]
    inputs = [name for kind, name in _OPTIONAL.items() if kind not in spans]
    if inputs:
        parts.append(f"inputs of {' and '.join(inputs)} in float")
    skipped = [name for name, reason in result.plan.float_sites.items() if reason != OUT_OF_SCOPE]
    if skipped:
        parts.append(f"in float: {_first(skipped)}")
    if not result.float_macs:
        return [*parts, "every MAC has both operands quantized"]
    share = sum(result.float_macs.values()) / result.plan.total_macs if result.plan.total_macs else 0.0
    return [*parts, f"{percent(share)} of the MACs in float: {_first(result.float_macs)}"]


def _first(names: Iterable[str], count: int = 4) -> str:
    known = list(names)
    return ", ".join(known[:count]) + (f" and {len(known) - count} more" if len(known) > count else "")


def _change(change: Change) -> str:
    return f"{change.technique}: {change.reason or 'changed the float model'}"


def _training(m: Metrics, stage: str) -> str:
    """How long one was, and what it did to the loss and to the images that it was not shown."""
    text = (
        f"{m[f'{stage}.epochs']} epochs of {m[f'{stage}.images']} images, {m[f'{stage}.steps']} steps: "
        f"loss {m[f'{stage}.loss_first']:.3f} → {m[f'{stage}.loss_last']:.3f}"
    )
    if f"{stage}.held_out_last" in m:
        first, best, last = (percent(m[f"{stage}.held_out_{which}"], 1) for which in ("first", "best", "last"))
        text += f"; held out {first} → {last}, best {best}"
    count = m[f"{stage}.processes"]
    return text + (f"; {count} processes" if count > 1 else "")


def _others(m: Metrics) -> Iterable[tuple[str, float]]:
    """Measurements that plugins added."""
    for key, value in m.items():
        if key.partition(".")[0] not in _OWN and isinstance(value, (int, float)):
            yield key, value


def _times(m: Metrics) -> Table:
    forward = m.get("float.forward_seconds")
    rows = [(key.removeprefix("seconds."), *_cost(m[key], forward)) for key in m if key.startswith("seconds.")]
    return Table("Time", ("stage", "seconds", "float forwards"), rows, right=("seconds", "float forwards"))


def _cost(seconds: float, forward: float | None) -> tuple[str, str]:
    return f"{seconds:.2f}", f"{seconds / forward:.1f}" if forward else "–"


def _seconds(m: Metrics) -> str:
    seconds, forward = m.get("seconds.total"), m.get("float.forward_seconds")
    if seconds is None:
        return "–"
    saved = m.get("cache.seconds_saved")
    return (
        f"{seconds:.1f} s"
        + (f", {seconds / forward:.0f} float forwards" if forward else "")
        + (f"; {saved:.1f} s of it were known from a cache" if saved else "")
    )


def _size(m: Metrics, convention: Convention) -> str:
    size, whole = m.get(convention.key("size_mb")), m.get(convention.key("float.size_mb"))
    text = number(size, "MB", 3)
    return f"{text}, {whole / size:.1f} times less than float ({whole:.3f} MB)" if size and whole else text


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}–{high}"


def percent(share: float | None, digits: int = 2) -> str:
    """A share in 0 … 1 for people."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def number(value: float | None, unit: str = "", digits: int = 2) -> str:
    """A number with its unit, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f} {unit}".strip()
