"""Picture of ``qplug sensitivity``: one heat map for each measure, roles in rows and blocks in columns."""

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

    from qplug.analysis.sensitivity.measure import Sensitivity, SiteSensitivity

NO_BLOCK = "–"
CELL_INCHES = (0.44, 0.27)
"""Width and height of a cell; wide enough for five digits."""
PANELS_ACROSS, LEAST_COLUMNS = 2, 8
"""Panels side by side, and columns that the title of a panel needs at least."""
DROP_SCALE = 10.0
"""End of the color scale of changed top-1 in percent, at least."""
MOST_LABELLED = 32
"""Number of columns above which cells have colors only."""


@dataclass(frozen=True)
class Panel:
    """One measure. ``high`` is true if a high value means a sensitive site. A NaN leaves its cell gray.

    ``least`` is the end of the color scale, at least, if it begins at 0: one image of a small set is then no alarm.
    """

    title: str
    value: Callable[[SiteSensitivity], float]
    high: bool
    least: float | None = None


def draw(result: Sensitivity, format: str) -> bytes:
    """The bytes of the picture as a ``png`` or ``svg`` file."""
    rows, columns, cells = grid(result.sites)
    panels = _panels(result)
    down = -(-len(panels) // PANELS_ACROSS)
    width = PANELS_ACROSS * (CELL_INCHES[0] * max(len(columns), LEAST_COLUMNS) + 0.7) + 2.6
    height = down * (CELL_INCHES[1] * len(rows) + 0.9) + 0.6
    figure = figure_of(width, height)
    axes = figure.subplots(down, PANELS_ACROSS, squeeze=False).ravel()
    for ax, panel in zip(axes, panels, strict=False):
        _heat_map(ax, panel, rows, columns, cells)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    images = result.images
    figure.suptitle(
        f"{result.model}: one site at {result.request.drop_at} bits, everything else in float\n"
        f"quantizers by {' and '.join(result.ranges)}; {images['calibration']} calibration images, "
        f"{images['evaluation']} evaluation images; dark red: sensitive; gray: no value; ≤ 0: estimated trace",
        fontsize=9,
    )
    return bytes_of(figure, format)


def grid(sites: Sequence[SiteSensitivity]) -> tuple[list[str], list[str], dict[tuple[int, int], SiteSensitivity]]:
    """Cell of each site: names that differ only in their numbers share a row, and the numbers are the column.

    Returns:
        Labels of the rows, weights first; labels of the columns, sites without a number first; (row, column) → site.
    """
    ordered = sorted(sites, key=lambda site: not site.site.kind.is_weight)
    places = {site.site.name: _split(site.site.name) for site in ordered}
    patterns = list(dict.fromkeys(pattern for pattern, _ in places.values()))
    in_model = (places[site.site.name][1] for site in sites)
    columns = sorted(dict.fromkeys(in_model), key=lambda number: number != NO_BLOCK)  # stable: else in model order
    kinds = {places[site.site.name][0]: site.site.kind.value for site in ordered}
    tails = {pattern: pattern.rpartition("*.")[2] for pattern in patterns}
    counts = Counter(tails.values())
    labels = [f"{tails[p] if counts[tails[p]] == 1 else p} ({kinds[p]})" for p in patterns]
    cells = {
        (patterns.index(places[site.site.name][0]), columns.index(places[site.site.name][1])): site for site in ordered
    }
    return labels, columns, cells


def _split(name: str) -> tuple[str, str]:
    parts = name.split(".")
    numbers = ".".join(part for part in parts if part.isdecimal())
    return ".".join("*" if part.isdecimal() else part for part in parts), numbers or NO_BLOCK


def _panels(result: Sensitivity) -> list[Panel]:
    at = result.request.drop_at
    bits = at if at in result.request.bits else min(result.request.bits)
    panels = [
        Panel("images whose top-1 changes, %", lambda site: 100 * site.effect.drop, True, least=DROP_SCALE),
        Panel("SQNR of the logits, dB", lambda site: site.effect.logit_sqnr_db, high=False),
        Panel(f"SQNR of the site's own values at {bits} bits, dB", lambda site: site.sqnr_db[bits], high=False),
    ]
    if any(site.trace for site in result.sites):
        title = f"HAWQ score: log10(trace/n · ‖ΔW‖²), weights at {at} bits"
        panels.append(Panel(title, _log_hawq, high=True))
    return panels


def _log_hawq(site: SiteSensitivity) -> float:
    value = site.values().get("hessian.hawq", math.nan)
    return math.log10(value) if value > 0 else -math.inf if value <= 0 else math.nan


def _heat_map(
    ax: Axes, panel: Panel, rows: Sequence[str], columns: Sequence[str], cells: dict[tuple[int, int], SiteSensitivity]
) -> None:
    values = np.full((len(rows), len(columns)), np.nan)
    for cell, site in cells.items():
        values[cell] = panel.value(site)
    measured = [index for index in range(len(rows)) if not np.isnan(values[index]).all()]  # a trace is of weights alone
    rows, values = [rows[index] for index in measured], values[measured]
    finite = values[np.isfinite(values)]
    # Outliers are clipped, so that they do not leave all other sites in one color; the cells print their numbers.
    low, high = (float(np.quantile(finite, q)) for q in (0.02, 0.98)) if finite.size else (0.0, 1.0)
    if panel.least is not None:
        low, high = 0.0, max(panel.least, high)
    colors = colormaps["YlOrRd" if panel.high else "YlOrRd_r"].with_extremes(bad="0.92")
    drawn = ax.imshow(
        np.ma.masked_invalid(values), cmap=colors, vmin=low, vmax=high if high > low else low + 1.0, aspect="auto"
    )
    ax.set_title(panel.title, fontsize=9, loc="left")
    ax.set_yticks(range(len(rows)), rows, fontsize=7)
    step = max(1, len(columns) // MOST_LABELLED)
    ax.set_xticks(range(0, len(columns), step), columns[::step], fontsize=7)
    ax.set_xlabel(f"block ({NO_BLOCK}: outside of blocks)" if NO_BLOCK in columns else "block", fontsize=8)
    ax.tick_params(length=0)
    ax.figure.colorbar(drawn, ax=ax, pad=0.01, aspect=30).ax.tick_params(labelsize=7)
    if len(columns) <= MOST_LABELLED:
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                red, green, blue, _ = drawn.cmap(drawn.norm(value)) if np.isfinite(value) else (1.0, 1.0, 1.0, 1.0)
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
                text = f"{value:.1f}" if np.isfinite(value) else "∞" if value > 0 else "≤ 0"
                ax.text(column, row, text, ha="center", va="center", fontsize=6, color="white" if dark else "black")
