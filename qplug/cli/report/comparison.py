"""Comparisons as values for machines and as tables for people."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from qplug.analysis.compare.noise import letter
from qplug.analysis.compare.protocol import paper_figure, protocol
from qplug.cli.report.run import coverage, number, percent, significant
from qplug.cli.report.screen import Table
from qplug.quantization.accounting import Convention

if TYPE_CHECKING:
    from qplug.analysis.compare import ComparisonRow, Group

Values = dict[str, Any]
TEXTS = (
    "name",
    "model",
    "bits",
    "score",
    "score_unit",
    "bops_convention",
    "evaluation_images",
    "tie",
    "paper",
    "folder",
)
OBJECTS = ("seeds", "protocol", "top1_by_seed", "protocol_differences", "folders")
NUMBERS = (
    *("bits_weights", "bits_activations", "size_mb", "bops_g", "coverage", "images", "float_top1", "finetuned_top1"),
    *("finetuned_top1_sd", "top1", "top1_sd", "drop", "agreement", "logit_sqnr_db", "seconds", "peak_memory_mb"),
    *("published_top1", "published_drop"),
)
"""Keys of ``values`` by the kind of their value."""
BEST_IS_LEAST = {"size_mb", "bops_g", "drop", "published_drop", "seconds", "peak_memory_mb"}
BEST_IS_LEAST |= {"bits_weights", "bits_activations"}
SAME_LETTER = "rows with the same letter do not differ significantly (5 %)"
"""With one seed by an exact test over images, with several by Student's t over seeds."""


def values(groups: Iterable[Group], convention: Convention) -> list[Values]:
    """One flat mapping for each row, for ``--json``, ``--csv``, ``--sort`` and ``--where``.

    Shares are fractions between 0 and 1. ``convention`` counts sizes and bit operations.
    """
    groups = list(groups)
    names = dict.fromkeys(name for group in groups for row in group.rows for name in row.plugin_metrics)
    rows = [
        {**_values(group, row, tie, convention), **_of_plugins(row, names)}
        for group in groups
        for row, tie in zip(group.rows, group.ties, strict=True)
    ]
    folders = Counter(row["folder"] for row in rows)
    for row in rows:
        if folders[row["folder"]] > 1:  # of the same name in other places
            row["folder"] = row["folders"][0] + row["folder"].removeprefix(PurePath(row["folders"][0]).name)
    return rows


def _of_plugins(row: ComparisonRow, names: Iterable[str]) -> Values:
    """Mean and standard deviation over seeds of each metric of a plugin."""
    return {key: value for name in names for key, value in ((name, row.mean(name)), (f"{name}_sd", row.spread(name)))}


def example_values(metrics: Iterable[str]) -> Values:
    """A row with every key of ``values`` and a value of its kind, to check keys before anything is run.

    Args:
        metrics: names of the metrics of plugins.
    """
    kinds: Values = {**dict.fromkeys(TEXTS, ""), **{key: [] for key in OBJECTS}, **dict.fromkeys(NUMBERS, 0.0)}
    return {**kinds, **{key: 0.0 for name in metrics for key in (name, f"{name}_sd")}}


def _values(group: Group, row: ComparisonRow, tie: str, convention: Convention) -> Values:
    score = row.score_key
    top1 = row.mean(f"quantized.{score}")
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
        "score": score,
        "score_unit": "fraction" if group.score_is_share else "number",
        "float_top1": group.float_score,
        "finetuned_top1": row.mean(f"finetuned.{score}"),
        "finetuned_top1_sd": row.spread(f"finetuned.{score}"),
        "top1": top1,
        "top1_sd": row.spread(f"quantized.{score}"),
        "top1_by_seed": row.values(f"quantized.{score}"),
        "drop": None if top1 is None else group.float_score - top1,
        "agreement": row.mean("quantized.agreement"),
        "logit_sqnr_db": row.mean("quantized.logit_sqnr_db"),
        "seconds": row.seconds,
        "peak_memory_mb": row.mean("peak_memory_mb"),
        "tie": tie,
        **_published(row),
        "folder": _folders(row),
        "folders": [str(run.folder) for run in row.runs],
    }


def _folders(row: ComparisonRow) -> str:
    """The name of the first run folder, and the number of the others."""
    first, *others = [run.folder.name for run in row.runs]
    return f"{first} and {len(others)} more" if others else first


def _published(row: ComparisonRow) -> Values:
    figure = paper_figure(row)
    top1 = None if figure is None or figure.top1 is None else figure.top1 / 100
    float_top1 = None if figure is None or figure.float_top1 is None else figure.float_top1 / 100
    return {
        "paper": figure.title if figure else None,
        "published_top1": top1,
        "published_drop": None if top1 is None or float_top1 is None else float_top1 - top1,
        "protocol_differences": figure.differences if figure else {},
    }


SCORE = "top-1"
"""Column of the score, under the name that it has in the group's task. Its keys are named after top-1 in any task."""
LOST = "points lost"
"""Column of the score's loss, in points where the score is a fraction."""
FINE_TUNED = "fine-tuned"
"""Column of the fine-tuned float model; hidden if no row has one."""

COLUMNS: list[tuple[str, Callable[[Values], str]]] = [  # title, and cell by ``values`` and the protocol's ``letter``
    ("recipe", lambda v: v["name"]),
    ("bits", lambda v: v["bits"]),
    ("protocol", lambda v: v["letter"]),
    (FINE_TUNED, lambda v: _with_spread(v, "finetuned_top1")),
    (SCORE, lambda v: _with_spread(v, "top1")),
    (LOST, lambda v: _points(v["drop"]) if v["score_unit"] == "fraction" else f"{v['drop']:.4g}"),
    ("same as", lambda v: v["tie"]),
    ("agreement", lambda v: percent(v["agreement"], 1)),
    ("SQNR", lambda v: number(v["logit_sqnr_db"], "dB", 1)),
    ("MB", lambda v: significant(v["size_mb"])),
    ("GBOPs", lambda v: operations(v["bops_g"])),
    ("MACs quantized", lambda v: coverage(v["coverage"], 1)),
    ("seconds", lambda v: number(v["seconds"], digits=1)),
    ("memory", lambda v: number(v["peak_memory_mb"], "MB", 0)),
]
FOLDER: tuple[str, Callable[[Values], str]] = ("folder", lambda v: v["folder"])
"""The last column."""
LESS = ("protocol", "same as", "agreement", "SQNR", "GBOPs", "MACs quantized", "seconds", "memory")
"""Columns that a narrow terminal shows below the others."""
RIGHT = tuple(title for title, _ in COLUMNS if title not in ("recipe", "protocol", "same as"))
PAPER_COLUMNS = ("recipe", "model", "paper", "published", "points lost there", "measured", "points lost here")


def operations(giga: float | None) -> str:
    """Bit operations in G: embedded models have thousandths, and timm's models thousands."""
    return significant(giga, 1 if giga is not None and giga >= 100 else 3)


def bits(row: ComparisonRow) -> str:
    """``W4A4``: the bits of the recipe, without its exceptions; mean bits if a technique allocated them."""
    allocated = row.runs[0].metrics.get("bits.by", "recipe") != "recipe"
    text = ""
    for side in ("weights", "activations"):
        requested, mean = row.runs[0].recipe["quantize"][side]["bits"], row.mean(f"bits.{side}_mean") or 0.0
        whole = requested if abs(mean - requested) < 0.5 else format(mean, ".3g")
        text += f"{side[0].upper()}{mean:.2f}" if allocated else f"{side[0].upper()}{whole}"
    return text


def comparison_tables(groups: Sequence[Group], rows: Sequence[Values], convention: Convention) -> list[Table]:
    """One table for each group, the float model first, and a last table of the protocols.

    Args:
        groups: groups of comparable rows, with the figures of their float model.
        rows: sorted and filtered ``values``.
        convention: convention that counted the costs in ``rows``.
    """
    letters: dict[str, str] = {}
    tables = []
    models = Counter(group.model for group in groups)
    for group in groups:
        folders = {str(row.runs[0].folder) for row in group.rows}
        members = [dict(row) for row in rows if row["folders"][0] in folders]
        if not members:
            continue
        for row in members:
            text = "; ".join(f"{name} {value}" for name, value in row["protocol"].items())
            row["letter"] = letters.setdefault(text, letter(len(letters)).upper())
        images = f" ({group.evaluation[:8]}…)" if models[group.model] > 1 else ""
        measured_on = f"{group.images} images{images}, " if group.images else ""
        title = f"{group.model}: {measured_on}float {group.score_title} {_float_score(group)}"
        title += ", NO BETTER THAN CHANCE" if group.float_at_chance else ""
        notes = [_seeds(members), *([SAME_LETTER] if any(row["tie"] for row in members) else [])]
        fine_tuned = any(row["finetuned_top1"] is not None for row in members)
        columns = [(name, cell) for name, cell in COLUMNS if fine_tuned or name != FINE_TUNED]
        plugin = dict.fromkeys(name for row in group.rows for name in row.plugin_metrics)
        columns += [*((name, functools.partial(_plugin_cell, name)) for name in plugin), FOLDER]
        titles = [name for name, _ in columns]
        lost = LOST if group.score_is_share else "lost"
        shown = [{SCORE: group.score_title, LOST: lost}.get(name, name) for name in titles]
        cells = [_float_row(group, convention, titles)] + [tuple(cell(row) for _, cell in columns) for row in members]
        right = [*(name for name in (*RIGHT, group.score_title, lost) if name in shown), *plugin]
        best = max(range(len(members)), key=lambda index: members[index]["top1"] or 0.0)
        styles: dict[int | str, str] = {0: "dim", best + 1: "green"} if len(members) > 1 else {0: "dim"}
        tables.append(Table(title, shown, cells, right, notes, less=[*LESS, *plugin, FOLDER[0]], styles=styles))
    if tables:
        legend = [f"{sign}: {text}" for text, sign in letters.items()]
        notes = [*legend, f"MB and BOPs, {convention}", "seconds without the cache"]
        if len(tables) > 1:
            notes.append("the models or images of these tables differ: compare only the rows of one table")
        tables.append(Table("Protocols", notes=notes))
    return tables


def _plugin_cell(name: str, values: Values) -> str:
    """A metric of a plugin, whose unit is unknown: four digits."""
    value, spread = values[name], values[f"{name}_sd"]
    return "–" if value is None else f"{value:.4g}" + (f" ±{spread:.2g}" if spread is not None else "")


def _points(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f}"


def _seeds(rows: Sequence[Values]) -> str:
    """The note on seeds. For two seeds, t(0.975; 1)/√2 = 9.0 standard deviations are significant."""
    names: dict[str, list[str]] = {}
    for row in rows:
        names.setdefault(", ".join(map(str, row["seeds"])), []).append(row["name"])
    if len(names) > 1:
        by_seeds = "; ".join(f"{', '.join(some)}: {seeds}" for seeds, some in names.items())
        spread = "; ± is the standard deviation" if any("," in seeds for seeds in names) else ""
        return f"rows with different seeds ({by_seeds}){spread}"
    (seeds,) = names
    if "," not in seeds:
        return f"one seed only ({seeds}); --seeds 0,1,2 shows the spread"
    two = "; with two seeds, only a difference of 9 times its own standard deviation is significant"
    return f"mean over the seeds {seeds}; ± is the standard deviation{two if seeds.count(',') == 1 else ''}"


def _with_spread(values: Values, key: str) -> str:
    spread = values[f"{key}_sd"]
    if values["score_unit"] != "fraction":
        return f"{values[key]:.4g}" + (f" ±{spread:.2g}" if spread is not None else "")
    return percent(values[key], 1) + (f" ±{100 * spread:.1f}" if spread is not None else "")


def _float_score(group: Group) -> str:
    return percent(group.float_score, 1) if group.score_is_share else f"{group.float_score:.4g}"


def _float_row(group: Group, convention: Convention, titles: Sequence[str]) -> tuple[str, ...]:
    """Row of the float model. A cost that differs between runs stays empty: rewriting changed the float model."""

    def common(key: str) -> float | None:
        figures = {run.metrics.get(convention.key(key)) for row in group.rows for run in row.runs}
        return figures.pop() if len(figures) == 1 else None

    cells = {
        "recipe": "float",
        "bits": "W32A32",
        "MB": significant(common("float.size_mb")),
        "GBOPs": operations(common("float.bops_g")),
        SCORE: _float_score(group),
    }
    return tuple(cells.get(title, "") for title in titles)


def paper_table(rows: Iterable[Values]) -> Table:
    """Published figures beside the measured figures of ``values``, and the differences of protocol."""
    cells, notes = [], []
    for row in rows:
        name, model, paper = row["name"], row["model"], row["paper"]
        if paper is None:
            cells.append((name, model, "names no paper", "", "", "", ""))
            continue
        top1, lost = row["published_top1"], row["published_drop"]
        published = ("not published", "–") if top1 is None else (_points(top1, 2), _points(lost, 2))
        cells.append((name, model, paper, *published, _points(row["top1"]), _points(row["drop"])))
        words = [f"{key}: paper {there}, here {here}" for key, (there, here) in row["protocol_differences"].items()]
        notes.append(f"{name}, {model}: {'; '.join(words) or 'the paper states no other protocol'}")
    unique_notes = list(dict.fromkeys(notes))
    return Table("Published and measured top-1, %", PAPER_COLUMNS, cells, PAPER_COLUMNS[3:], unique_notes)
