"""What ``qplug inspect --ranges`` and ``--hessian`` found, as values and as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from qplug.cli.report.screen import Table
from qplug.cli.report.sensitivity import LOSS

if TYPE_CHECKING:
    from qplug.analysis.ranges.activations import Range
    from qplug.analysis.ranges.analyze import Look, RangeAnalysis
    from qplug.analysis.ranges.mixing import Mixing, Role

ROLES: tuple[Role, ...] = ("token", "channel")


def summary(found: RangeAnalysis) -> dict[str, Any]:
    """Everything that ``--json`` prints; positions are fractions of the depth, between 0 and 1."""
    from qplug.analysis.ranges.activations import PERCENTILE, SAMPLED

    request = found.request
    ranges = {"percentile": PERCENTILE, "values_at_most": SAMPLED} if request.ranges else None
    hessian = {
        "loss": LOSS,
        "probes_at_most": request.hessian_probes,
        "token_mixing": list(request.token_mixing),
        "channel_mixing": list(request.channel_mixing),
    }
    return {
        "status": "done",
        "model": found.model,
        "fingerprint": found.fingerprint,
        "protocol": {
            "images": found.images,
            "seed": request.seed,
            "ranges": ranges,
            "hessian": hessian if request.hessian_probes else None,
        },
        **{name: _look(look) for name, look in found.looks.items()},
        "seconds": found.seconds,
        "warnings": found.warnings,
    }


def _look(look: Look) -> dict[str, Any]:
    return {
        "origin": look.origin,
        "changes": [asdict(change) for change in look.changes],
        "ranges": [asdict(one) for one in look.ranges],
        "hessian": [
            {
                "block": one.block,
                "position": one.position,
                "mixing": one.role,
                "operations": list(one.operations),
                "parameters": one.trace.parameters,
                "trace": one.trace.value,
                "standard_error": one.trace.standard_error,
                "per_parameter": one.trace.per_parameter,
                "probes": one.trace.probes,
            }
            for one in look.mixing
        ],
    }


def analysis_tables(found: RangeAnalysis) -> list[Table]:
    """The ranges, before and after side by side, and the traces of each model."""
    tables = [_ranges(found)] if found.request.ranges else []
    if found.request.hessian_probes:
        tables += [_mixing(found, name, look) for name, look in found.looks.items()]
    return tables


def over_all(mixing: Sequence[Mixing], role: Role) -> float:
    """The mean trace per parameter of all mixers of one role."""
    traces = [one.trace for one in mixing if one.role == role]
    return sum(trace.value for trace in traces) / sum(trace.parameters for trace in traces)


def _ranges(found: RangeAnalysis) -> Table:
    from qplug.analysis.ranges.activations import SAMPLED

    looks = found.looks
    numbers: tuple[str, ...]
    rows: list[tuple[str, ...]]
    if "after" in looks:
        numbers = ("depth (%)", "max |x| before", "max |x| after", "99 % of |x| before", "99 % of |x| after")
        pairs = _paired(looks["before"].ranges, looks["after"].ranges)
        rows = [_both(before, after) for before, after in pairs]
    else:
        numbers = ("depth (%)", "min", "1 %", "99 %", "max", "max |x|", "99 % of |x|")
        rows = [
            (
                *(one.name, one.kind, f"{100 * one.position:.1f}", f"{one.low:,.2f}", f"{one.percentile_low:,.2f}"),
                *(f"{one.percentile_high:,.2f}", f"{one.high:,.2f}", f"{one.largest:,.2f}", f"{one.percentile:,.2f}"),
            )
            for one in looks["before"].ranges
        ]
    notes = [
        "percentiles of the values of all images together, in the model's own units; depth: the share of the model "
        "behind it, of which operations share their block's evenly",
        f"protocol: {found.images} images; seed {found.request.seed}; extremes of every value, percentiles of at most "
        f"{SAMPLED:,} of each activation; inputs of Softmax and LayerNorm are not shown",
        *_origins(found),
    ]
    return Table(f"Ranges of the activations of {found.model}", ("site", "kind", *numbers), rows, numbers, notes)


def _both(before: Range | None, after: Range | None) -> tuple[str, ...]:
    one = after or before
    assert one is not None
    cells = [f"{value:,.2f}" if value is not None else "" for value in (_of(before, after, "largest"))]
    cells += [f"{value:,.2f}" if value is not None else "" for value in (_of(before, after, "percentile"))]
    return (one.name, one.kind, f"{100 * one.position:.1f}", *cells)


def _of(before: Range | None, after: Range | None, name: str) -> list[float | None]:
    return [getattr(one, name) if one is not None else None for one in (before, after)]


def _paired(before: Sequence[Range], after: Sequence[Range]) -> Iterator[tuple[Range | None, Range | None]]:
    """Both in one order: those of one name side by side, and what a rewriting replaced before what it brought."""
    names, others = ([one.name for one in side] for side in (before, after))
    for tag, i, j, k, m in SequenceMatcher(a=names, b=others, autojunk=False).get_opcodes():
        if tag == "equal":
            yield from zip(before[i:j], after[k:m], strict=True)
        else:
            yield from ((one, None) for one in before[i:j])
            yield from ((None, one) for one in after[k:m])


def _mixing(found: RangeAnalysis, name: str, look: Look) -> Table:
    columns = ("block", "depth (%)", "token/n", "± s.e.", "channel/n", "± s.e. (channel)", "token/channel")
    rows = []
    for block in dict.fromkeys(one.block for one in look.mixing):
        here = {one.role: one for one in look.mixing if one.block == block}
        cells = [cell for role in ROLES for cell in _trace(here.get(role))]
        both = len(here) == 2 and here["channel"].trace.value
        ratio = f"{here['token'].trace.per_parameter / here['channel'].trace.per_parameter:.1f}" if both else ""
        rows.append((block, f"{100 * next(iter(here.values())).position:.1f}", *cells, ratio))
    token, channel = (over_all(look.mixing, role) for role in ROLES)
    probes = look.mixing[0].trace.probes
    times = f", {token / channel:.1f} times as much" if channel > 0 else ""
    notes = [
        f"over all blocks: token-mixing {token:.2e}, channel-mixing {channel:.2e}: token{times}",
        "token/n and channel/n: the trace of d²L/dW² over all n weights and biases of a block's mixers of that kind, "
        f"in nats per weight² and parameter; L = {LOSS}",
        f"protocol: {found.images} images; seed {found.request.seed}; {probes} Rademacher vectors, at most "
        f"{found.request.hessian_probes}",
    ]
    title = f"Hessian traces of the mixers of {found.model}"
    if "after" in found.looks:
        title += f", {name}"
        notes += _origins(found) if name == "after" else []
    return Table(title, columns, rows, columns[1:], notes)


def _trace(one: Mixing | None) -> tuple[str, str]:
    if one is None:
        return "", ""
    return f"{one.trace.per_parameter:.2e}", f"{one.trace.standard_error / one.trace.parameters:.0e}"


def _origins(found: RangeAnalysis) -> list[str]:
    """What the rewritten model is, and what was changed in it."""
    if "after" not in found.looks:
        return []
    after = found.looks["after"]
    counted = Counter(f"{change.technique}: {change.reason}" for change in after.changes)
    return [f"after: {after.origin}", *(f"{count} × {what}" for what, count in counted.items())]
