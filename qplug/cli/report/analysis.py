"""Results of ``qplug inspect --ranges`` and ``--hessian``, as values and as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from qplug.cli.report.screen import Table
from qplug.cli.report.sensitivity import LOSS

if TYPE_CHECKING:
    from qplug.analysis.ranges.activations import ActivationRange
    from qplug.analysis.ranges.analyze import ModelAnalysis, RangeAnalysis
    from qplug.analysis.ranges.mixing import MixerTrace, Role

ROLES: tuple[Role, ...] = ("token", "channel")


def analysis_summary(analysis: RangeAnalysis) -> dict[str, Any]:
    """The object that ``--json`` prints; positions are fractions of the depth, between 0 and 1."""
    from qplug.analysis.ranges.activations import PERCENTILE, SAMPLED

    request = analysis.request
    ranges = {"percentile": PERCENTILE, "values_at_most": SAMPLED} if request.ranges else None
    hessian = {
        "loss": LOSS,
        "probes_at_most": request.hessian_probes,
        "token_mixing": list(request.token_mixing),
        "channel_mixing": list(request.channel_mixing),
    }
    return {
        "status": "done",
        "model": analysis.model,
        "fingerprint": analysis.fingerprint,
        "protocol": {
            "images": analysis.images,
            "seed": request.seed,
            "ranges": ranges,
            "hessian": hessian if request.hessian_probes else None,
        },
        **{name: _model_summary(model) for name, model in analysis.models.items()},
        "seconds": analysis.seconds,
        "warnings": analysis.warnings,
    }


def _model_summary(model: ModelAnalysis) -> dict[str, Any]:
    return {
        "origin": model.label,
        "changes": [asdict(change) for change in model.changes],
        "ranges": [asdict(activation) for activation in model.ranges],
        "hessian": [
            {
                "block": mixer.block,
                "position": mixer.position,
                "mixing": mixer.role,
                "operations": list(mixer.operations),
                "parameters": mixer.trace.parameters,
                "trace": mixer.trace.value,
                "standard_error": mixer.trace.standard_error,
                "per_parameter": mixer.trace.per_parameter,
                "probes": mixer.trace.probes,
            }
            for mixer in model.mixing
        ],
    }


def analysis_tables(analysis: RangeAnalysis) -> list[Table]:
    """A table of ranges, before and after side by side, and a table of traces for each model."""
    tables = [_ranges(analysis)] if analysis.request.ranges else []
    if analysis.request.hessian_probes:
        tables += [_mixing(analysis, name, model) for name, model in analysis.models.items()]
    return tables


def over_all(mixing: Sequence[MixerTrace], role: Role) -> float:
    """Mean trace per parameter of all mixers of one role."""
    traces = [mixer.trace for mixer in mixing if mixer.role == role]
    return sum(trace.value for trace in traces) / sum(trace.parameters for trace in traces)


def _ranges(analysis: RangeAnalysis) -> Table:
    from qplug.analysis.ranges.activations import SAMPLED

    models = analysis.models
    numbers: tuple[str, ...]
    rows: list[tuple[str, ...]]
    if "after" in models:
        numbers = ("depth (%)", "max |x| before", "max |x| after", "99 % of |x| before", "99 % of |x| after")
        pairs = _paired(models["before"].ranges, models["after"].ranges)
        rows = [_both(before, after) for before, after in pairs]
    else:
        numbers = ("depth (%)", "min", "1 %", "99 %", "max", "max |x|", "99 % of |x|")
        rows = [
            (
                *(x.name, x.kind, f"{100 * x.position:.1f}", f"{x.low:,.2f}", f"{x.percentile_low:,.2f}"),
                *(f"{x.percentile_high:,.2f}", f"{x.high:,.2f}", f"{x.largest:,.2f}", f"{x.percentile:,.2f}"),
            )
            for x in models["before"].ranges
        ]
    notes = [
        "1 %, 99 %: percentiles of the values over all images",
        "depth: share of the model up to the operation's output; the operations of a block divide its share evenly",
        f"protocol: {analysis.images} images; seed {analysis.request.seed}; percentiles of at most {SAMPLED:,} values "
        "of each activation; without the inputs of Softmax and LayerNorm",
        *_changes(analysis),
    ]
    return Table(f"Activation ranges of {analysis.model}", ("site", "kind", *numbers), rows, numbers, notes)


def _both(before: ActivationRange | None, after: ActivationRange | None) -> tuple[str, ...]:
    site = after or before
    assert site is not None
    values = [
        getattr(activation, name) if activation is not None else None
        for name in ("largest", "percentile")
        for activation in (before, after)
    ]
    cells = [f"{value:,.2f}" if value is not None else "" for value in values]
    return (site.name, site.kind, f"{100 * site.position:.1f}", *cells)


def _paired(
    before: Sequence[ActivationRange], after: Sequence[ActivationRange]
) -> Iterator[tuple[ActivationRange | None, ActivationRange | None]]:
    """Ranges of the same name as pairs; a removed site precedes the sites that replace it."""
    old, new = ([activation.name for activation in side] for side in (before, after))
    for tag, i, j, k, m in SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes():
        if tag == "equal":
            yield from zip(before[i:j], after[k:m], strict=True)
        else:
            yield from ((activation, None) for activation in before[i:j])
            yield from ((None, activation) for activation in after[k:m])


def _mixing(analysis: RangeAnalysis, name: str, model: ModelAnalysis) -> Table:
    columns = ("block", "depth (%)", "token", "± error", "channel", "± error (channel)", "token/channel")
    rows = []
    for block in dict.fromkeys(mixer.block for mixer in model.mixing):
        by_role = {mixer.role: mixer for mixer in model.mixing if mixer.block == block}
        cells = [cell for role in ROLES for cell in _trace(by_role.get(role))]
        both = len(by_role) == 2 and by_role["channel"].trace.value
        ratio = f"{by_role['token'].trace.per_parameter / by_role['channel'].trace.per_parameter:.1f}" if both else ""
        rows.append((block, f"{100 * next(iter(by_role.values())).position:.1f}", *cells, ratio))
    token, channel = (over_all(model.mixing, role) for role in ROLES)
    probes = model.mixing[0].trace.probes
    ratio = f"; ratio {token / channel:.1f}" if channel > 0 else ""
    notes = [
        f"all blocks: token mixers {token:.2e}, channel mixers {channel:.2e}{ratio}",
        "token, channel: trace of d²L/dW² over all weights and biases of the mixers, divided by their number, in nats "
        f"per weight²; ± error: standard error; L = {LOSS}",
        f"protocol: {analysis.images} images; seed {analysis.request.seed}; {probes} Rademacher vectors, at most "
        f"{analysis.request.hessian_probes}",
    ]
    title = f"Hessian traces of the mixers of {analysis.model}"
    if "after" in analysis.models:
        title += f", {name}"
        notes += _changes(analysis) if name == "after" else []
    return Table(title, columns, rows, columns[1:], notes)


def _trace(mixer: MixerTrace | None) -> tuple[str, str]:
    if mixer is None:
        return "", ""
    return f"{mixer.trace.per_parameter:.2e}", f"{mixer.trace.standard_error / mixer.trace.parameters:.0e}"


def _changes(analysis: RangeAnalysis) -> list[str]:
    """Label of the rewritten model, and its changes."""
    if "after" not in analysis.models:
        return []
    after = analysis.models["after"]
    counted = Counter(f"{change.technique}: {change.reason}" for change in after.changes)
    return [f"after: {after.label}", *(f"{count} × {change}" for change, count in counted.items())]
