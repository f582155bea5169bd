"""What ``qplug sensitivity`` measured, as values and as tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from qplug.cli.report.run import number
from qplug.cli.report.screen import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qplug.analysis.sensitivity.correlation import Correlation
    from qplug.analysis.sensitivity.measure import Measured, Sensitivity

LOSS = "cross-entropy against the float model's own top-1, mean over the calibration images"
TARGETS = ("drop", "logit_sqnr_db")
"""The expensive measures, which the others are to predict."""


def summary(found: Sensitivity) -> dict[str, Any]:
    """Everything that ``qplug sensitivity --json`` prints; shares are fractions between 0 and 1."""
    return {
        "status": "done",
        "model": found.model,
        "fingerprint": found.fingerprint,
        "protocol": {
            **found.request.model_dump(mode="json", exclude={"hessian_probes"}),
            "drop_bits": found.request.drop_at,
            "weights": _spec(found, weights=True),
            "activations": _spec(found, weights=False),
            "ranges": found.ranges,
            "images": found.images,
            "hessian": {"loss": LOSS, "probes_at_most": found.request.hessian_probes}
            if found.request.hessian_probes
            else None,
        },
        "sites": [_site(one) for one in found.sites],
        "correlations": {
            group: [{"one": c.one, "other": c.other, "rho": c.rho, "p": c.p, "n": c.n} for c in pairs]
            for group, pairs in found.correlations.items()
        },
        "seconds": found.seconds,
        "warnings": found.warnings,
    }


def _site(one: Measured) -> dict[str, Any]:
    site, trace = one.site, one.trace
    hessian = {"hessian.standard_error": trace.standard_error, "hessian.probes": trace.probes} if trace else {}
    return {
        "name": site.name,
        "kind": site.kind.value,
        "module": site.module,
        "shape": list(site.shape),
        "quantizer": one.decision.quantizer.describe(),
        "technique": one.decision.technique,
        **one.values(),
        **hessian,
    }


def ranked(found: Sensitivity) -> list[Measured]:
    """The most sensitive first: by drop, and where drops are equal by the SQNR of the logits."""
    return sorted(found.sites, key=lambda one: (-one.effect.drop, one.effect.logit_sqnr_db))


def sensitivity_tables(found: Sensitivity, top: int | None = None) -> list[Table]:
    """The sites, the ``top`` most sensitive or all, and whether the cheap measures predict the expensive ones."""
    return [_sites(found, top), _correlations(found)]


def _sites(found: Sensitivity, top: int | None) -> Table:
    at, with_trace = found.request.drop_at, any(one.trace for one in found.sites)
    numbers = [*(f"SQNR@{bits} (dB)" for bits in found.request.bits), "drop (%)", "logit SQNR (dB)"]
    numbers += ["trace", "± s.e.", "trace/n", "trace/n·‖ΔW‖²"] if with_trace else []
    rows = []
    for one in ranked(found)[:top]:
        values = (*one.sqnr_db.values(), 100 * one.effect.drop, one.effect.logit_sqnr_db)
        cells = [number(value, digits=1) for value in values]
        rows.append((one.site.name, one.site.kind.value, *cells, *(_hessian(one) if with_trace else ())))
    shown = f", the {len(rows)} most sensitive of {len(found.sites)}" if len(rows) < len(found.sites) else ""
    notes = [
        f"SQNR@b: of the site's own values at b bits. drop: images whose top-1 changes if this site alone has "
        f"{at} bits, and with it the SQNR of the logits",
        f"protocol: {'; '.join(_protocol(found))}",
    ]
    if with_trace:
        probes = max(one.trace.probes for one in found.sites if one.trace)
        end = "the limit" if probes == found.request.hessian_probes else "the means have settled"
        notes.append(f"trace: of d²L/dW² over n parameters, {probes} probes ({end}); L = {LOSS}; ΔW at {at} bits")
    notes.append("seconds: " + ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in found.seconds.items()))
    return Table(f"Sensitivity of {found.model}{shown}", ("site", "kind", *numbers), rows, numbers, notes)


def _hessian(one: Measured) -> tuple[str, ...]:
    if one.trace is None:
        return ("", "", "", "")
    values = one.values()
    return (
        f"{one.trace.value:.3g}",
        f"{one.trace.standard_error:.1g}",
        f"{one.trace.per_parameter:.2e}",
        f"{values['hessian.hawq']:.2e}",
    )


def _correlations(found: Sensitivity) -> Table:
    columns = ("sites", "measure", "ρ with drop", "p", "ρ with logit SQNR", "p (logits)", "n")
    rows: list[tuple[str, ...]] = []
    for group, pairs in found.correlations.items():
        known = {(pair.one, pair.other): pair for pair in pairs}
        cheap = [name for name in dict.fromkeys(pair.one for pair in pairs) if name not in TARGETS]
        for name in cheap:
            drop, logits = (known[name, target] for target in TARGETS)
            rows.append((group, name, *_rank(drop), *_rank(logits), str(drop.n)))
        rows.append((group, "logit_sqnr_db", *_rank(known["drop", "logit_sqnr_db"]), "", "", str(pairs[0].n)))
    notes = [
        "Spearman's ρ over sites, p two-sided. Perfect prediction: for an SQNR, ρ = −1 with the drop and +1 with the "
        "SQNR of the logits; for a trace, +1 and −1"
    ]
    return Table("Do the cheap measures predict the drop?", columns, rows, columns[2:], notes)


def _rank(pair: Correlation) -> tuple[str, str]:
    return ("–", "–") if math.isnan(pair.rho) else (f"{pair.rho:+.2f}", f"{pair.p:.1g}")


def _protocol(found: Sensitivity) -> Sequence[str]:
    scope, images = found.request.scope, found.images
    inputs = [name for name, wanted in (("Softmax", scope.softmax), ("LayerNorm", scope.layernorm)) if not wanted]
    return [
        f"weights {_spec(found, weights=True)}, activations {_spec(found, weights=False)}",
        f"ranges {' and '.join(found.ranges)}",
        f"{images['calibration']} images to calibrate, {images['evaluation']} to measure",
        f"seed {found.request.seed}",
        *([f"inputs of {' and '.join(inputs)} in float"] if inputs else []),
    ]


def _spec(found: Sensitivity, *, weights: bool) -> str:
    quantize = found.request.quantize()
    config = quantize.weights if weights else quantize.activations
    return f"{config.granularity.value} {'symmetric' if config.symmetric else 'asymmetric'}"
