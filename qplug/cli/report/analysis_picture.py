"""A picture of what ``qplug inspect`` analysed: Q-MLP's Fig. 2, and Fig. 3 below it, before and after side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from qplug.cli.report.analysis import ROLES
from qplug.cli.report.picture import bytes_of, figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from qplug.analysis.ranges.activations import Range
    from qplug.analysis.ranges.analyze import RangeAnalysis

WIDTH, HEIGHT = 10.0, 2.7
"""Inches, of the picture and of a row of panels."""
STYLES = {"before": ("C0", "o"), "after": ("C1", "s"), "token": ("C3", "o"), "channel": ("C2", "s")}
CROWDED = 40
"""Points above which the lines between them are thin."""
SPREAD = 20.0
"""Ratio of the largest to the smallest value above which an axis of ranges is logarithmic."""


def draw(found: RangeAnalysis, format: str) -> bytes:
    """The picture as the bytes of a ``png`` or ``svg`` file."""
    rows: list[Callable[[Axes, Axes], None]] = []
    if found.request.ranges:
        rows.append(lambda left, right: _ranges(found, "inputs of operations", False, left, right))
        if any(_is_block(one) for look in found.looks.values() for one in look.ranges):
            rows.append(lambda left, right: _ranges(found, "outputs of blocks", True, left, right))
    if found.request.hessian_probes:
        rows.append(lambda left, right: _mixing(found, left, right))
    figure = figure_of(WIDTH, HEIGHT * len(rows) + 0.6)
    for row, (left, right) in zip(rows, figure.subplots(len(rows), 2, squeeze=False), strict=True):
        row(left, right)
    after = f"; after: {found.looks['after'].origin}" if "after" in found.looks else ""
    figure.suptitle(f"{found.model}, {found.images} images{after}", fontsize=10)
    return bytes_of(figure, format)


def _is_block(one: Range) -> bool:
    from qplug.analysis.ranges.activations import BLOCK_OUTPUT

    return one.kind == BLOCK_OUTPUT


def _ranges(found: RangeAnalysis, title: str, blocks: bool, left: Axes, right: Axes) -> None:
    panels: tuple[tuple[Axes, str, Callable[[Range], float]], ...] = (
        (left, "largest |x|", lambda one: one.largest),
        (right, "99 % percentile of |x|", lambda one: one.percentile),
    )
    for ax, what, value in panels:
        drawn: list[float] = []
        for name, look in found.looks.items():
            shown = [one for one in look.ranges if _is_block(one) is blocks]
            values = [value(one) for one in shown]
            drawn += values
            _line(ax, name, [one.position for one in shown], values, name)
        _axes(ax, f"{title}: {what}", "|x|, the model's own units", drawn)
        if len(found.looks) > 1:
            ax.legend(fontsize=8)


def _mixing(found: RangeAnalysis, left: Axes, right: Axes) -> None:
    for name, ax in zip(found.looks, (left, right), strict=False):
        drawn: list[float] = []
        for role in ROLES:
            shown = [one for one in found.looks[name].mixing if one.role == role]
            values = [one.trace.per_parameter for one in shown]
            errors = [one.trace.standard_error / one.trace.parameters for one in shown]
            positions = [100 * one.position for one in shown]
            colour, marker = STYLES[role]
            ax.errorbar(positions, values, errors, color=colour, marker=marker, ms=4, lw=1, capsize=2)
            ax.plot([], [], color=colour, marker=marker, ms=4, lw=1, label=f"{role}-mixing")
            drawn += values
        after = f", {name}" if len(found.looks) > 1 else ""
        _axes(ax, f"mean Hessian trace per parameter, ± s.e.{after}", "nats / weight²", drawn, spread=1.0)
        ax.legend(fontsize=8)
    if len(found.looks) > 1:
        left.sharey(right)
        left.autoscale(axis="y")
    else:
        right.set_axis_off()


def _line(ax: Axes, style: str, positions: Iterable[float], values: Iterable[float], label: str) -> None:
    colour, marker = STYLES[style]
    hollow = {"mfc": "none", "ms": 6} if style == "before" else {"ms": 3}  # seen where the other one covers it
    heights = list(values)
    width = 0.8 if len(heights) <= CROWDED else 0.3
    ax.plot([100 * x for x in positions], heights, color=colour, marker=marker, lw=width, label=label, **hollow)


def _axes(ax: Axes, title: str, unit: str, values: list[float], spread: float = SPREAD) -> None:
    """Labels, and a logarithmic axis where a linear one would hide the small values; never one that hides a zero."""
    if min(values) > 0 and max(values) > spread * min(values):
        ax.set_yscale("log")
    else:
        ax.set_ylim(min(0.0, 1.05 * min(values)), 1.05 * max(*values, 0.0) or 1.0)
    ax.set_xlim(-4, 104)
    ax.set_title(title, fontsize=9, loc="left")
    ax.set_xlabel("layer position, % of the depth", fontsize=8)
    ax.set_ylabel(unit, fontsize=8)
    ax.tick_params(which="both", labelsize=7)
    ax.grid(alpha=0.3)
