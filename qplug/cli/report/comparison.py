"""Comparisons as values for machines and as tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from qplug.analysis.compare.noise import letter
from qplug.analysis.compare.protocol import paper_figure, protocol
from qplug.cli.report.run import number, percent
from qplug.cli.report.screen import Table
from qplug.quantization.accounting import Convention

if TYPE_CHECKING:
    from qplug.analysis.compare import Group, Row

Values = dict[str, Any]
BEST_IS_LEAST = {"size_mb", "bops_g", "drop", "published_drop", "seconds", "peak_memory_mb"}
BEST_IS_LEAST |= {"bits_weights", "bits_activations"}
TIES = "rows that share a letter are ties: exact test over images (p ≥ 0.05), or 95 % of Student's t over seeds hold 0"


def values(groups: Iterable[Group], convention: Convention) -> list[Values]:
    """One flat mapping a row, for ``--json``, ``--csv``, ``--sort`` and ``--where``; shares are fractions.

    Sizes and bit operations are those that ``convention`` counts.
    """
    return [
        _values(group, row, tie, convention)
        for group in groups
        for row, tie in zip(group.rows, group.ties, strict=True)
    ]


def _values(group: Group, row: Row, tie: str, convention: Convention) -> Values:
    top1 = row.mean("quantized.top1")
    return {
        "name": row.name,
        "model": group.model,
        "seeds": row.seeds,
        "bits": bits(row),
        "bits_weights": row.mean("bits.weights_mean"),
        "bits_activations": row.mean("bits.activations_mean"),
        "protocol": protocol(row.runs[0]),
        "size_mb": row.mean(convention.key("size_mb")),
        "bops_g": row.mean(convention.key("bops_g")),
        "bops_convention": str(convention),
        "coverage": row.mean("coverage.macs"),
        "images": group.images,
        "evaluation_images": group.evaluation,
        "float_top1": group.float_top1,
        "finetuned_top1": row.mean("finetuned.top1"),
        "finetuned_top1_sd": row.spread("finetuned.top1"),
        "top1": top1,
        "top1_sd": row.spread("quantized.top1"),
        "top1_by_seed": row.values("quantized.top1"),
        "drop": None if top1 is None else group.float_top1 - top1,
        "agreement": row.mean("quantized.agreement"),
        "logit_sqnr_db": row.mean("quantized.logit_sqnr_db"),
        "seconds": row.mean("seconds.total"),
        "peak_memory_mb": row.mean("peak_memory_mb"),
        "tie": tie,
        **_published(row),
        "folders": [str(run.folder) for run in row.runs],
    }


def _published(row: Row) -> Values:
    figure = paper_figure(row)
    top1 = None if figure is None or figure.top1 is None else figure.top1 / 100
    float_top1 = None if figure is None or figure.float_top1 is None else figure.float_top1 / 100
    return {
        "paper": figure.title if figure else None,
        "published_top1": top1,
        "published_drop": None if top1 is None or float_top1 is None else float_top1 - top1,
        "protocol_differences": figure.differences if figure else {},
    }


TUNED = "fine-tuned"
"""Title of the column for the float model behind a fine-tune, which is shown where a row has one."""

COLUMNS: list[tuple[str, Callable[[Values], str]]] = [  # of ``values``, and the ``letter`` of the protocol
    ("recipe", lambda v: v["name"]),
    ("bits", lambda v: v["bits"]),
    ("P", lambda v: v["letter"]),
    ("MB", lambda v: number(v["size_mb"])),
    ("GBOPs", lambda v: number(v["bops_g"], digits=1)),
    ("quantized", lambda v: percent(v["coverage"], 1)),
    (TUNED, lambda v: _with_spread(v, "finetuned_top1")),
    ("top-1", lambda v: _with_spread(v, "top1")),
    ("drop", lambda v: _points(v["drop"])),
    ("agreement", lambda v: percent(v["agreement"], 1)),
    ("SQNR", lambda v: number(v["logit_sqnr_db"], "dB", 1)),
    ("seconds", lambda v: number(v["seconds"], digits=1)),
    ("memory", lambda v: number(v["peak_memory_mb"], "MB", 0)),
    ("tie", lambda v: v["tie"]),
]
RIGHT = tuple(title for title, _ in COLUMNS if title not in ("recipe", "P", "tie"))


def bits(row: Row) -> str:
    """``W4A4``: as the recipe asks, whose few exceptions are part of the protocol; means where bits were allocated."""
    allocated = row.runs[0].metrics.get("bits.by", "recipe") != "recipe"
    text = ""
    for side in ("weights", "activations"):
        asked, mean = row.runs[0].recipe["quantize"][side]["bits"], row.mean(f"bits.{side}_mean") or 0.0
        whole = asked if abs(mean - asked) < 0.5 else format(mean, ".3g")
        text += f"{side[0].upper()}{mean:.2f}" if allocated else f"{side[0].upper()}{whole}"
    return text


def comparison_tables(groups: Sequence[Group], rows: Sequence[Values], convention: Convention) -> list[Table]:
    """One table a group, the float model first.

    Args:
        groups: where the float model's figures come from.
        rows: of ``values``, as sorted and filtered.
        convention: that ``rows`` were counted by.
    """
    letters: dict[str, str] = {}
    tables = []
    models = Counter(group.model for group in groups)
    for group in groups:
        its = {str(row.runs[0].folder) for row in group.rows}
        mine = [dict(row) for row in rows if row["folders"][0] in its]
        if not mine:
            continue
        for row in mine:
            text = "; ".join(f"{name} {value}" for name, value in row["protocol"].items())
            row["letter"] = letters.setdefault(text, letter(len(letters)).upper())
        which = f" ({group.evaluation[:8]}…)" if models[group.model] > 1 else ""
        title = f"{group.model}: {group.images} images{which}, float top-1 {percent(group.float_top1, 1)}"
        notes = [_seeds(mine), *([TIES] if any(row["tie"] for row in mine) else [])]
        tuned = any(row["finetuned_top1"] is not None for row in mine)
        columns = [(name, cell) for name, cell in COLUMNS if tuned or name != TUNED]
        titles = [name for name, _ in columns]
        cells = [_float_row(group, convention, titles)] + [tuple(cell(row) for _, cell in columns) for row in mine]
        tables.append(Table(title, titles, cells, [name for name in RIGHT if name in titles], notes))
    if tables:
        legend = [f"{sign}: {text}" for text, sign in letters.items()]
        tables.append(
            Table("Protocols", notes=[*legend, f"MB and BOPs, {convention}", "seconds as computed without a cache"])
        )
    if len(tables) > 2:
        tables[-1].notes = [*tables[-1].notes, "models or images differ between the tables above: compare within each"]
    return tables


def _points(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f}"


def _seeds(rows: Sequence[Values]) -> str:
    names: dict[str, list[str]] = {}
    for row in rows:
        names.setdefault(", ".join(map(str, row["seeds"])), []).append(row["name"])
    if len(names) > 1:
        which = "; ".join(f"{', '.join(some)}: {seeds}" for seeds, some in names.items())
        return f"means over seeds, which differ ({which}); ± is their standard deviation"
    (seeds,) = names
    if seeds.count(",") == 1:
        few = "of two, recipes differ where their difference is 9 times as large as its own ±"
        return f"means over seeds {seeds}; ± is their standard deviation; {few}"
    if "," in seeds:
        return f"means over seeds {seeds}; ± is their standard deviation"
    return f"seed {seeds} alone: how much the choice of calibration images moves a figure is not known"


def _with_spread(values: Values, key: str) -> str:
    spread = values[f"{key}_sd"]
    return percent(values[key], 1) + (f" ±{100 * spread:.1f}" if spread is not None else "")


def _float_row(group: Group, convention: Convention, titles: Sequence[str]) -> tuple[str, ...]:
    """Costs are empty where rows disagree on them: they are those of the model as it was rewritten."""

    def agreed(key: str) -> float | None:
        found = {run.metrics.get(convention.key(key)) for row in group.rows for run in row.runs}
        return found.pop() if len(found) == 1 else None

    known = {
        "recipe": "float",
        "bits": "W32A32",
        "MB": number(agreed("float.size_mb")),
        "GBOPs": number(agreed("float.bops_g"), digits=1),
        "top-1": percent(group.float_top1, 1),
    }
    return tuple(known.get(title, "") for title in titles)


def paper_table(rows: Iterable[Values]) -> Table:
    """Published figures beside measured ones, and how the protocols differ; ``rows`` of ``values``."""
    cells, notes = [], []
    for row in rows:
        name, model, paper = row["name"], row["model"], row["paper"]
        if paper is None:
            cells.append((name, model, "names no paper", "", "", "", ""))
            continue
        theirs, loss = row["published_top1"], row["published_drop"]
        published = ("not published", "–") if theirs is None else (_points(theirs, 2), _points(loss, 2))
        cells.append((name, model, paper, *published, _points(row["top1"]), _points(row["drop"])))
        words = [f"{key}: {there} there, {here} here" for key, (there, here) in row["protocol_differences"].items()]
        notes.append(f"{name}, {model}: {'; '.join(words) or 'no difference of protocol is named'}")
    columns = ("recipe", "model", "paper", "published", "its drop", "measured", "our drop")
    return Table("Published and measured top-1, %", columns, cells, columns[3:], list(dict.fromkeys(notes)))
