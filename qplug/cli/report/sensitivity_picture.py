"""A picture of what ``qplug sensitivity`` measured: a heat map a measure, sites of one role down, depth across."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps

from qplug.cli.report.picture import bytes_of, figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from qplug.analysis.sensitivity.measure import Measured, Sensitivity

NO_BLOCK = "–"
CELL = (0.44, 0.27)
"""Inches; wide enough for five digits."""
ACROSS, NARROWEST = 2, 8
"""Panels side by side, and columns that a panel's title needs at least."""
WRITTEN = 32
"""Columns above which cells have colours alone."""


@dataclass(frozen=True)
class Panel:
    """One measure: ``high`` says whether a high value means a sensitive site; NaN leaves a cell grey."""

    title: str
    value: Callable[[Measured], float]
    high: bool


def draw(found: Sensitivity, format: str) -> bytes:
    """The picture as the bytes of a ``png`` or ``svg`` file."""
    rows, columns, cells = grid(found.sites)
    panels = _panels(found)
    down = -(-len(panels) // ACROSS)
    width = ACROSS * (CELL[0] * max(len(columns), NARROWEST) + 0.7) + 2.6
    height = down * (CELL[1] * len(rows) + 0.9) + 0.6
    figure = figure_of(width, height)
    axes = figure.subplots(down, ACROSS, squeeze=False, sharey=True).ravel()
    for ax, panel in zip(axes, panels, strict=False):
        _heat_map(ax, panel, rows, columns, cells)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    images = found.images
    figure.suptitle(
        f"{found.model}: one site at {found.request.drop_at} bits, everything else in float\n"
        f"ranges {' and '.join(found.ranges)}; {images['calibration']} images to calibrate, {images['evaluation']} to "
        "measure; dark red: sensitive; grey: no value",
        fontsize=9,
    )
    return bytes_of(figure, format)


def grid(measured: Sequence[Measured]) -> tuple[list[str], list[str], dict[tuple[int, int], Measured]]:
    """Where each site stands: names that differ in their numbers alone share a row, and the numbers are the column.

    Returns:
        Labels of the rows, weights first; labels of the columns, sites without a number first; (row, column) → site.
    """
    ordered = sorted(measured, key=lambda one: not one.site.kind.is_weight)
    places = {one.site.name: _split(one.site.name) for one in ordered}
    patterns = list(dict.fromkeys(pattern for pattern, _ in places.values()))
    in_model = (places[one.site.name][1] for one in measured)
    columns = sorted(dict.fromkeys(in_model), key=lambda number: number != NO_BLOCK)  # stable: else in model order
    kinds = {places[one.site.name][0]: one.site.kind.value for one in ordered}
    tails = {pattern: pattern.rpartition("*.")[2] for pattern in patterns}
    several = Counter(tails.values())
    labels = [f"{tails[p] if several[tails[p]] == 1 else p} ({kinds[p]})" for p in patterns]
    cells = {
        (patterns.index(places[one.site.name][0]), columns.index(places[one.site.name][1])): one for one in ordered
    }
    return labels, columns, cells


def _split(name: str) -> tuple[str, str]:
    parts = name.split(".")
    numbers = ".".join(part for part in parts if part.isdecimal())
    return ".".join("*" if part.isdecimal() else part for part in parts), numbers or NO_BLOCK


def _panels(found: Sensitivity) -> list[Panel]:
    at = found.request.drop_at
    bits = at if at in found.request.bits else min(found.request.bits)
    panels = [
        Panel("drop: images whose top-1 changes, %", lambda one: 100 * one.effect.drop, high=True),
        Panel("SQNR of the logits, dB", lambda one: one.effect.logit_sqnr_db, high=False),
        Panel(f"SQNR of own values at {bits} bits, dB", lambda one: one.sqnr_db[bits], high=False),
    ]
    if any(one.trace for one in found.sites):
        title = f"Hessian: log10(trace/n · ‖ΔW‖²), weights at {at} bits"
        panels.append(Panel(title, _log_hawq, high=True))
    return panels


def _log_hawq(one: Measured) -> float:
    value = one.values().get("hessian.hawq", math.nan)
    return math.log10(value) if value > 0 else -math.inf if value <= 0 else math.nan


def _heat_map(
    ax: Axes, panel: Panel, rows: Sequence[str], columns: Sequence[str], cells: dict[tuple[int, int], Measured]
) -> None:
    values = np.full((len(rows), len(columns)), np.nan)
    for place, one in cells.items():
        values[place] = panel.value(one)
    finite = values[np.isfinite(values)]
    # A few sites far from all others would leave the rest in one colour; their numbers are written into the cells.
    low, high = (float(np.quantile(finite, q)) for q in (0.02, 0.98)) if finite.size else (0.0, 1.0)
    colours = colormaps["YlOrRd" if panel.high else "YlOrRd_r"].with_extremes(bad="0.92")
    drawn = ax.imshow(
        np.ma.masked_invalid(values), cmap=colours, vmin=low, vmax=high if high > low else low + 1.0, aspect="auto"
    )
    ax.set_title(panel.title, fontsize=9, loc="left")
    ax.set_yticks(range(len(rows)), rows, fontsize=7)
    step = max(1, len(columns) // WRITTEN)
    ax.set_xticks(range(0, len(columns), step), columns[::step], fontsize=7)
    ax.set_xlabel(f"block ({NO_BLOCK}: outside of blocks)" if NO_BLOCK in columns else "block", fontsize=8)
    ax.tick_params(length=0)
    ax.figure.colorbar(drawn, ax=ax, pad=0.01, aspect=30).ax.tick_params(labelsize=7)
    if len(columns) <= WRITTEN:
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                red, green, blue, _ = drawn.cmap(drawn.norm(value)) if np.isfinite(value) else (1.0, 1.0, 1.0, 1.0)
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
                text = f"{value:.1f}" if np.isfinite(value) else "∞" if value > 0 else "≤ 0"
                ax.text(column, row, text, ha="center", va="center", fontsize=6, color="white" if dark else "black")
