"""Results of a run, as values and as tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from qplug.cli.report.screen import Table
from qplug.core.text import listed, percent as text_of_percent
from qplug.core.types import OUT_OF_SCOPE
from qplug.quantization.accounting import Convention

if TYPE_CHECKING:
    from qplug.core.types import Change
    from qplug.pipeline.results import RunResult

Metrics = Mapping[str, Any]
TRAININGS = {"finetune": "fine-tuning", "qat": "QAT"}
"""Stages that train, with their titles in tables."""
_OPTIONAL_KINDS = {"softmax_input": "Softmax", "layernorm_input": "LayerNorm"}
_OWN_METRICS = {"float", "quantized", "bits", "coverage", "images", "seconds", "cache", "finetune", "finetuned", "qat"}
_OWN_METRICS |= {"calibration", "accounting", "size_mb", "bops_g", "bops_convention", "peak_memory_mb"}


def run_summary(result: RunResult) -> dict[str, Any]:
    """The object that ``qplug run --json`` prints."""
    return {
        "status": "done",
        "folder": str(result.folder) if result.folder else None,
        "metrics": dict(result.metrics),
        "decisions": decisions(result),
        "float_macs": dict(result.float_macs),
        "unknown_macs": dict(result.plan.unknown),
        "warnings": list(result.warnings),
    }


def decisions(result: RunResult) -> list[dict[str, Any]]:
    """The plan in short: one entry for each kind of site, kind of quantizer and technique.

    ``undone`` names the technique whose reconstruction left the sites as they were; it is empty otherwise.
    """
    groups: dict[tuple[str, str, str, str], list[int]] = {}
    for decision in result.plan:
        key = (decision.site.kind.value, decision.quantizer.kind, decision.technique, decision.undone)
        groups.setdefault(key, []).append(decision.quantizer.bits)
    return [
        {
            "kind": kind,
            "sites": len(bits),
            "bits_min": min(bits),
            "bits_max": max(bits),
            "quantizer": quantizer,
            "technique": technique,
            "undone": undone,
        }
        for (kind, quantizer, technique, undone), bits in groups.items()
    ]


def summary_tables(result: RunResult, convention: Convention) -> list[Table]:
    """Quantizers by kind of site, time of each stage, and results with the costs by one convention."""
    m = result.metrics
    score, title = m.get("score", "top1"), m.get("score_title", "top-1")
    bits = f"weights {number(m.get('bits.weights_mean'))}, activations {number(m.get('bits.activations_mean'))}"
    rows = [
        (f"{title}, float", _score(m, f"float.{score}")),
        *([(f"{title}, fine-tuned", percent(m[f"finetuned.{score}"]))] if f"finetuned.{score}" in m else []),
        (f"{title}, quantized", _score(m, f"quantized.{score}")),
        *_other_scores(m, score),
        *_against_float(m),
        ("size", _size(m, convention)),
        ("bit operations", significant(m.get(convention.key("bops_g")), 3, "G")),
        ("counted by", str(convention)),
        ("mean bits", bits),
        ("MACs quantized", coverage(m.get("coverage.macs"))),
        ("calibration images", str(m.get("images.calibration", "–"))),
        ("evaluation images", _evaluation(m)),
        *((title, _training(m, stage)) for stage, title in TRAININGS.items() if f"{stage}.steps" in m),
        ("time", _time(m)),
        ("peak memory", number(m.get("peak_memory_mb"), "MB", 0)),
    ]
    rows += [(key, number(value)) for key, value in _plugin_metrics(m)]
    if result.folder:
        rows.append(("run folder", str(result.folder)))
    groups = decisions(result)
    by_kind = [
        (g["kind"], str(g["sites"]), _span(g["bits_min"], g["bits_max"]), g["quantizer"], _technique(g)) for g in groups
    ]
    changes = Counter(_change(change) for change in result.plan.changes)
    notes = [f"{count} × {change}" for change, count in changes.items()]
    protocol = "protocol: " + "; ".join(protocol_parts(groups, result))
    tables = [
        Table("Quantizers", ("kind", "sites", "bits", "quantizer", "technique"), by_kind, ("sites", "bits"), notes),
        _stage_times(m),
        Table("Results", (), rows, notes=[protocol]),
    ]
    return [table for table in tables if table.rows]


def _score(m: Metrics, key: str) -> str:
    """A fraction in percent; the number of a caller's own function as it is."""
    if m.get("score_unit") == "number":
        return f"{m[key]:.4g}"
    return percent(m.get(key))


def _against_float(m: Metrics) -> list[tuple[str, str]]:
    """How near the outputs are to the float model's, on evaluation data; a run in memory may have none."""
    if not m.get("images.evaluation", 1):
        return (
            [("SQNR on calibration data", number(m["calibration.sqnr_db"], "dB"))] if "calibration.sqnr_db" in m else []
        )
    return [
        ("agreement with float", percent(m.get("quantized.agreement"))),
        ("logit SQNR", number(m.get("quantized.logit_sqnr_db"), "dB")),
    ]


def _other_scores(m: Metrics, score: str) -> list[tuple[str, str]]:
    """What a task measures of both models beside its score."""
    names = [name.partition(".")[2] for name in m if name.startswith("quantized.")]
    others = [name for name in names if f"float.{name}" in m and name not in (score, "forward_seconds")]
    return [(f"{name}, {model}", _score(m, f"{model}.{name}")) for name in others for model in ("float", "quantized")]


def protocol_parts(groups: Iterable[Mapping[str, Any]], result: RunResult) -> list[str]:
    """Bits of every kind of operand, and the sites and operations that stay in float."""
    spans: dict[str, tuple[int, int]] = {}
    for group in groups:
        low, high = spans.get(group["kind"], (group["bits_min"], group["bits_max"]))
        spans[group["kind"]] = (min(low, group["bits_min"]), max(high, group["bits_max"]))
    parts = [f"{kind} {_span(*span)} bits" for kind, span in spans.items()]
    float_inputs = [name for kind, name in _OPTIONAL_KINDS.items() if kind not in spans]
    if float_inputs:
        parts.append(f"inputs of {' and '.join(float_inputs)} in float")
    skipped = [name for name, reason in result.plan.float_sites.items() if reason != OUT_OF_SCOPE]
    if skipped:
        parts.append(f"in float: {listed(skipped, 4)}")
    if result.plan.unknown:
        parts.append(f"an unknown share of the MACs in float: {listed(result.plan.unknown, 4)}")
    if not result.float_macs:
        return parts if result.plan.unknown else [*parts, "both operands of every MAC quantized"]
    share = sum(result.float_macs.values()) / result.plan.total_macs if result.plan.total_macs else 0.0
    kind = "counted MACs" if result.plan.unknown else "MACs"
    return [*parts, f"{percent(share)} of the {kind} in float: {listed(result.float_macs, 4)}"]


def _technique(group: Mapping[str, Any]) -> str:
    """The technique of a group, and the one whose reconstruction changed nothing there."""
    return str(group["technique"]) + (f"; {group['undone']} undone" if group["undone"] else "")


def _evaluation(m: Metrics) -> str:
    """``20; 5 classes, ant … emu; labels by folder name``."""
    parts = (m.get("images.evaluation", "–"), m.get("images.evaluation_labels"))
    return "; ".join(str(part) for part in parts if part is not None)


def _change(change: Change) -> str:
    return f"{change.technique}: {change.reason or 'changed the float model'}"


def _training(m: Metrics, stage: str) -> str:
    """Length of a training, its loss, and its accuracy on held-out images."""
    text = (
        f"{m[f'{stage}.epochs']} epochs of {m[f'{stage}.images']} images, {m[f'{stage}.steps']} steps: "
        f"loss {m[f'{stage}.loss_first']:.3f} → {m[f'{stage}.loss_last']:.3f}"
    )
    if f"{stage}.held_out_last" in m:
        first, best, last = (percent(m[f"{stage}.held_out_{which}"], 1) for which in ("first", "best", "last"))
        text += f"; held out {first} → {last}, best {best}"
    count = m[f"{stage}.processes"]
    return text + (f"; {count} processes" if count > 1 else "")


def _plugin_metrics(m: Metrics) -> Iterable[tuple[str, float]]:
    """Metrics that plugins added."""
    for key, value in m.items():
        if key.partition(".")[0] not in _OWN_METRICS and isinstance(value, (int, float)):
            yield key, value


def _stage_times(m: Metrics) -> Table:
    stages = [key.removeprefix("seconds.") for key in m if key.startswith("seconds.")]
    if not m.get("cache.seconds_saved"):
        rows = [(stage, f"{m[f'seconds.{stage}']:.2f}") for stage in stages]
        return Table("Time of each stage", ("stage", "seconds"), rows, ("seconds",))
    saved = {stage: m.get(f"cache.seconds_saved.{stage}") for stage in stages} | {"total": m["cache.seconds_saved"]}
    cells = [(stage, f"{m[f'seconds.{stage}']:.2f}", number(saved[stage]) if saved[stage] else "") for stage in stages]
    return Table(
        "Time of each stage", ("stage", "seconds", "saved by the cache"), cells, ("seconds", "saved by the cache")
    )


def _time(m: Metrics) -> str:
    """``took 184 s (147 s saved by the cache)``."""
    total, saved = m.get("seconds.total"), m.get("cache.seconds_saved")
    if total is None:
        return "–"
    return f"took {_seconds(total)}" + (f" ({_seconds(saved)} saved by the cache)" if saved else "")


def _seconds(value: float) -> str:
    return number(value, "s", 0 if value >= 100 else 1)


def _size(m: Metrics, convention: Convention) -> str:
    size, whole = m.get(convention.key("size_mb")), m.get(convention.key("float.size_mb"))
    text = significant(size, 3, "MB")
    less = f"{whole / size:.1f} times less than float" if size and whole else ""
    return f"{text}, {less} ({significant(whole, 3, 'MB')})" if less else text


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}–{high}"


def percent(share: float | None, digits: int = 2) -> str:
    """A share between 0 and 1 as text, in percent; a dash if there is none."""
    return "–" if share is None else text_of_percent(share, digits)


def coverage(share: float | None, digits: int = 2) -> str:
    """A share of quantized MACs as text; ``unknown`` where some are in no count."""
    return "unknown" if share is None else percent(share, digits)


def number(value: float | None, unit: str = "", digits: int = 2) -> str:
    """A number with its unit as text; a dash if there is none. NaN is what the outputs do not define."""
    if value is None:
        return "–"
    return "not defined" if math.isnan(value) else f"{value:.{digits}f} {unit}".strip()


def significant(value: float | None, digits: int = 2, unit: str = "") -> str:
    """``number`` with ``digits``; more for a value that they would round to 0, so that it still says something."""
    if value and round(abs(value), digits) < 10.0 ** (1 - digits):
        return f"{value:.2g} {unit}".strip()
    return number(value, unit, digits)
