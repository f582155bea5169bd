"""Picture of ``qplug inspect``: Q-MLP's Fig. 2, and Fig. 3 below it, before and after a rewrite."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from qplug.cli.report.analysis import ROLES
from qplug.cli.report.picture import bytes_of, figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from qplug.analysis.ranges.activations import ActivationRange
    from qplug.analysis.ranges.analyze import RangeAnalysis

WIDTH, HEIGHT = 10.0, 2.7
"""Width of the picture and height of a row of panels, in inches."""
STYLES = {"before": ("C0", "o"), "after": ("C1", "s"), "token": ("C3", "o"), "channel": ("C2", "s")}
MANY_POINTS = 40
"""Number of points above which their lines are thin."""
LOG_SCALE_RATIO = 20.0
"""Ratio of the largest to the smallest value above which an axis of ranges is logarithmic."""


def draw(analysis: RangeAnalysis, format: str) -> bytes:
    """The bytes of the picture as a ``png`` or ``svg`` file."""
    rows: list[Callable[[Axes, Axes], None]] = []
    if analysis.request.ranges:
        rows.append(lambda left, right: _ranges(analysis, "inputs of operations", False, left, right))
        if any(_is_block(x) for model in analysis.models.values() for x in model.ranges):
            rows.append(lambda left, right: _ranges(analysis, "outputs of blocks", True, left, right))
    if analysis.request.hessian_probes:
        rows.append(lambda left, right: _mixing(analysis, left, right))
    figure = figure_of(WIDTH, HEIGHT * len(rows) + 0.6)
    for row, (left, right) in zip(rows, figure.subplots(len(rows), 2, squeeze=False), strict=True):
        row(left, right)
    after = f"; after: {analysis.models['after'].label}" if "after" in analysis.models else ""
    figure.suptitle(f"{analysis.model}, {analysis.images} images{after}", fontsize=10)
    return bytes_of(figure, format)


def _is_block(activation: ActivationRange) -> bool:
    from qplug.analysis.ranges.activations import BLOCK_OUTPUT

    return activation.kind == BLOCK_OUTPUT


def _ranges(analysis: RangeAnalysis, title: str, blocks: bool, left: Axes, right: Axes) -> None:
    panels: tuple[tuple[Axes, str, Callable[[ActivationRange], float]], ...] = (
        (left, "largest |x|", lambda x: x.largest),
        (right, "99th percentile of |x|", lambda x: x.percentile),
    )
    for ax, measure, value in panels:
        drawn: list[float] = []
        for name, model in analysis.models.items():
            ranges = [x for x in model.ranges if _is_block(x) is blocks]
            values = [value(x) for x in ranges]
            drawn += values
            _line(ax, name, [x.position for x in ranges], values, name)
        _axes(ax, f"{title}: {measure}", "|x|, the model's own units", drawn)
        if len(analysis.models) > 1:
            ax.legend(fontsize=8)


def _mixing(analysis: RangeAnalysis, left: Axes, right: Axes) -> None:
    for name, ax in zip(analysis.models, (left, right), strict=False):
        drawn: list[float] = []
        for role in ROLES:
            mixers = [mixer for mixer in analysis.models[name].mixing if mixer.role == role]
            values = [mixer.trace.per_parameter for mixer in mixers]
            errors = [mixer.trace.standard_error / mixer.trace.parameters for mixer in mixers]
            positions = [100 * mixer.position for mixer in mixers]
            color, marker = STYLES[role]
            ax.errorbar(positions, values, errors, color=color, marker=marker, ms=4, lw=1, capsize=2)
            ax.plot([], [], color=color, marker=marker, ms=4, lw=1, label=f"{role}-mixing")
            drawn += values
        after = f", {name}" if len(analysis.models) > 1 else ""
        _axes(ax, f"mean Hessian trace per parameter ± standard error{after}", "nats / weight²", drawn, spread=1.0)
        ax.legend(fontsize=8)
    if len(analysis.models) > 1:
        left.sharey(right)
        left.autoscale(axis="y")
    else:
        right.set_axis_off()


def _line(ax: Axes, style: str, positions: Iterable[float], values: Iterable[float], label: str) -> None:
    color, marker = STYLES[style]
    hollow = {"mfc": "none", "ms": 6} if style == "before" else {"ms": 3}  # visible behind the line of "after"
    heights = list(values)
    width = 0.8 if len(heights) <= MANY_POINTS else 0.3
    ax.plot([100 * x for x in positions], heights, color=color, marker=marker, lw=width, label=label, **hollow)


def _axes(ax: Axes, title: str, unit: str, values: list[float], spread: float = LOG_SCALE_RATIO) -> None:
    """Labels, and a logarithmic axis if all values are positive and their ratio is larger than ``spread``."""
    if min(values) > 0 and max(values) > spread * min(values):
        ax.set_yscale("log")
    else:
        ax.set_ylim(min(0.0, 1.05 * min(values)), 1.05 * max(*values, 0.0) or 1.0)
    ax.set_xlim(-4, 104)
    ax.set_title(title, fontsize=9, loc="left")
    ax.set_xlabel("position, % of the depth", fontsize=8)
    ax.set_ylabel(unit, fontsize=8)
    ax.tick_params(which="both", labelsize=7)
    ax.grid(alpha=0.3)
