"""Results of ``qplug sensitivity``, as values and as tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from qplug.cli.report.run import number
from qplug.cli.report.screen import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qplug.analysis.sensitivity.correlation import Correlation
    from qplug.analysis.sensitivity.measure import Sensitivity, SiteSensitivity

LOSS = "cross-entropy against the float model's own top-1, mean over the calibration images"
TITLES = {
    "hessian.trace": "Hessian trace",
    "hessian.per_parameter": "trace per parameter",
    "hessian.hawq": "HAWQ score",
    "drop": "top-1 changed",
    "logit_sqnr_db": "logit SQNR",
}
TARGETS = ("drop", "logit_sqnr_db")
"""The expensive measures, which the cheap measures should predict."""


def sensitivity_summary(result: Sensitivity) -> dict[str, Any]:
    """The object that ``qplug sensitivity --json`` prints; shares are fractions between 0 and 1."""
    return {
        "status": "done",
        "model": result.model,
        "fingerprint": result.fingerprint,
        "protocol": {
            **result.request.model_dump(mode="json", exclude={"hessian_probes"}),
            "drop_bits": result.request.drop_at,
            "weights": _spec(result, weights=True),
            "activations": _spec(result, weights=False),
            "ranges": result.ranges,
            "images": result.images,
            "hessian": {"loss": LOSS, "probes_at_most": result.request.hessian_probes}
            if result.request.hessian_probes
            else None,
        },
        "sites": [_site(site) for site in result.sites],
        "correlations": {
            group: [{"one": c.one, "other": c.other, "rho": c.rho, "p": c.p, "n": c.n} for c in pairs]
            for group, pairs in result.correlations.items()
        },
        "seconds": result.seconds,
        "warnings": result.warnings,
    }


def _site(measures: SiteSensitivity) -> dict[str, Any]:
    site, trace = measures.site, measures.trace
    hessian = {"hessian.standard_error": trace.standard_error, "hessian.probes": trace.probes} if trace else {}
    return {
        "name": site.name,
        "kind": site.kind.value,
        "module": site.module,
        "shape": list(site.shape),
        "quantizer": measures.decision.quantizer.describe(),
        "technique": measures.decision.technique,
        **measures.values(),
        **hessian,
    }


def ranked(result: Sensitivity) -> list[SiteSensitivity]:
    """The sites, most sensitive first: by changed top-1, then by the SQNR of the logits."""
    return sorted(result.sites, key=lambda site: (-site.effect.drop, site.effect.logit_sqnr_db))


def sensitivity_tables(result: Sensitivity, top: int | None = None) -> list[Table]:
    """The ``top`` most sensitive sites, or all; and how well the cheap measures predict the expensive ones."""
    return [_sites(result, top), _correlations(result)]


def _sites(result: Sensitivity, top: int | None) -> Table:
    bits, with_trace = result.request.drop_at, any(site.trace for site in result.sites)
    numbers = ["top-1 changed (%)", "logit SQNR (dB)", *(f"SQNR at {b} bits (dB)" for b in result.request.bits)]
    numbers += ["Hessian trace", "± error", "trace per parameter", "HAWQ score"] if with_trace else []
    rows = []
    for site in ranked(result)[:top]:
        values = (100 * site.effect.drop, site.effect.logit_sqnr_db, *site.sqnr_db.values())
        cells = [number(value, digits=1) for value in values]
        rows.append((site.site.name, site.site.kind.value, *cells, *(_hessian(site) if with_trace else ())))
    selection = f", the {len(rows)} most sensitive of {len(result.sites)}" if len(rows) < len(result.sites) else ""
    notes = [
        f"top-1 changed: share of images with another top-1 if only this site is quantized, at {bits} bits; "
        "logit SQNR: SQNR of the logits of this model; SQNR at b bits: SQNR of the site's own values",
        f"protocol: {'; '.join(_protocol(result))}",
    ]
    if with_trace:
        probes = max(site.trace.probes for site in result.sites if site.trace)
        end = "the limit" if probes == result.request.hessian_probes else "the estimates have settled"
        notes.append(
            f"Hessian trace: of d²L/dW², {probes} random vectors ({end}); ± error: standard error; L = {LOSS}; "
            f"HAWQ score: trace per parameter · ‖ΔW‖², ΔW at {bits} bits"
        )
    notes.append("seconds: " + ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in result.seconds.items()))
    return Table(f"Sensitivity of {result.model}{selection}", ("site", "kind", *numbers), rows, numbers, notes)


def _hessian(site: SiteSensitivity) -> tuple[str, ...]:
    if site.trace is None:
        return ("", "", "", "")
    return (
        f"{site.trace.value:.3g}",
        f"{site.trace.standard_error:.1g}",
        f"{site.trace.per_parameter:.2e}",
        f"{site.values()['hessian.hawq']:.2e}",
    )


def measure_title(name: str) -> str:
    """Title of a measure in tables: ``sqnr_db.8`` is ``SQNR at 8 bits``."""
    return f"SQNR at {name.removeprefix('sqnr_db.')} bits" if name.startswith("sqnr_db.") else TITLES[name]


def _correlations(result: Sensitivity) -> Table:
    columns = ("sites", "measure", "ρ with top-1 changed", "p", "ρ with logit SQNR", "p (logits)", "number of sites")
    rows: list[tuple[str, ...]] = []
    for group, pairs in result.correlations.items():
        by_names = {(pair.one, pair.other): pair for pair in pairs}
        cheap = [name for name in dict.fromkeys(pair.one for pair in pairs) if name not in TARGETS]
        for name in cheap:
            drop, logits = (by_names[name, target] for target in TARGETS)
            rows.append((group, measure_title(name), *_rank(drop), *_rank(logits), str(drop.n)))
        logits = by_names["drop", "logit_sqnr_db"]
        rows.append((group, measure_title("logit_sqnr_db"), *_rank(logits), "", "", str(logits.n)))
    notes = [
        "ρ: Spearman's rank correlation over sites; p: two-sided; –: the measure is the same for all sites",
        "perfect prediction: an SQNR has ρ = −1 with the changed top-1 and +1 with the logit SQNR, a trace +1 and −1",
    ]
    return Table("How well do the cheap measures predict the damage?", columns, rows, columns[2:], notes)


def _rank(pair: Correlation) -> tuple[str, str]:
    return ("–", "–") if math.isnan(pair.rho) else (f"{pair.rho:+.2f}", f"{pair.p:.1g}")


def _protocol(result: Sensitivity) -> Sequence[str]:
    scope, images = result.request.scope, result.images
    inputs = [name for name, quantized in (("Softmax", scope.softmax), ("LayerNorm", scope.layernorm)) if not quantized]
    return [
        f"weights {_spec(result, weights=True)}, activations {_spec(result, weights=False)}",
        f"quantizers by {' and '.join(result.ranges)}",
        f"{images['calibration']} calibration images, {images['evaluation']} evaluation images",
        f"seed {result.request.seed}",
        *([f"inputs of {' and '.join(inputs)} in float"] if inputs else []),
    ]


def _spec(result: Sensitivity, *, weights: bool) -> str:
    quantize = result.request.quantize()
    config = quantize.weights if weights else quantize.activations
    return f"{config.granularity.value.replace('_', ' ')} {'symmetric' if config.symmetric else 'asymmetric'}"
