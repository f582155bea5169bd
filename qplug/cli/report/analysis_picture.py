"""Picture of ``qplug inspect``: ranges along the depth, a line for each role, and Hessian traces below them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from matplotlib import colormaps

from qplug.cli.report.analysis import ROLES
from qplug.cli.report.picture import bytes_of, figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from qplug.analysis.ranges.activations import ActivationRange
    from qplug.analysis.ranges.analyze import RangeAnalysis

WIDTH, HEIGHT = 11.0, 3.0
"""Width of the picture and height of a row of panels, in inches."""
MIXERS = {"token": ("C3", "o"), "channel": ("C2", "s")}
STYLES = {"before": ("-", "o", 4), "after": ("--", "s", 3)}
"""Line, marker and its size of each model; the color is that of the role."""
LOG_SCALE_RATIO = 20.0
"""Ratio of the largest to the smallest value above which an axis of ranges is logarithmic."""
OUTPUT = "output"
"""Role of the outputs of blocks."""


def draw(analysis: RangeAnalysis, format: str) -> bytes:
    """The bytes of the picture as a ``png`` or ``svg`` file."""
    with_blocks = analysis.request.ranges and any(_is_block(x) for m in analysis.models.values() for x in m.ranges)
    count = analysis.request.ranges + with_blocks + bool(analysis.request.hessian_probes)
    figure = figure_of(WIDTH, HEIGHT * count + 0.6)
    grid, row = figure.add_gridspec(count, 2), 0
    for title, blocks in (("inputs of operations", False), ("outputs of blocks", True)):
        if analysis.request.ranges and (with_blocks or not blocks):
            _ranges(analysis, title, blocks, [figure.add_subplot(grid[row, column]) for column in (0, 1)])
            row += 1
    if analysis.request.hessian_probes:
        places = [grid[row, 0], grid[row, 1]] if len(analysis.models) > 1 else [grid[row, :]]
        _mixing(analysis, [figure.add_subplot(place) for place in places])
    after = f"; after: {analysis.models['after'].label}" if "after" in analysis.models else ""
    figure.suptitle(f"{analysis.model}, {analysis.images} images{after}", fontsize=10)
    return bytes_of(figure, format)


def roles(ranges: Sequence[ActivationRange]) -> dict[str, list[ActivationRange]]:
    """Activations by role, in model order: names that differ only in their numbers have one role."""
    found: dict[str, list[ActivationRange]] = {}
    for activation in ranges:
        parts = activation.name.split(".")
        last = max((index for index, part in enumerate(parts) if part.isdecimal()), default=-1)
        role = OUTPUT if _is_block(activation) else f"{'.'.join(parts[last + 1 :])} ({activation.kind})"
        found.setdefault(role, []).append(activation)
    return found


def _is_block(activation: ActivationRange) -> bool:
    from qplug.analysis.ranges.activations import BLOCK_OUTPUT

    return activation.kind == BLOCK_OUTPUT


def _ranges(analysis: RangeAnalysis, title: str, blocks: bool, panels: Sequence[Axes]) -> None:
    """A line for each role: operations of different roles in one block are not joined."""
    measures: tuple[tuple[str, Callable[[ActivationRange], float]], ...] = (
        ("largest |x|", lambda x: x.largest),
        ("99th percentile of |x|", lambda x: x.percentile),
    )
    by_model = {
        name: roles([x for x in model.ranges if _is_block(x) is blocks]) for name, model in analysis.models.items()
    }
    names = list(dict.fromkeys(role for found in by_model.values() for role in found))
    palette = colormaps["tab10" if len(names) <= 10 else "tab20"]
    for ax, (measure, value) in zip(panels, measures, strict=True):
        drawn: list[float] = []
        for name, found in by_model.items():
            line, marker, size = STYLES[name]
            for role, activations in found.items():
                values = [value(x) for x in activations]
                drawn += values
                color = palette(names.index(role) % palette.N)
                label = role if name == "before" or role not in by_model["before"] else None
                where = [100 * x.position for x in activations]
                ax.plot(where, values, line, color=color, marker=marker, ms=size, mfc="none", lw=1, label=label)
        _axes(ax, f"{title}: {measure}", "|x|, the model's own units", drawn)
    if not blocks:
        panels[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    if len(by_model) > 1:
        for name, (line, marker, size) in STYLES.items():
            panels[0].plot([], [], line, color="0.4", marker=marker, ms=size, mfc="none", lw=1, label=name)
        handles = panels[0].get_legend_handles_labels()[0][-len(STYLES) :]
        panels[0].legend(handles, list(STYLES), fontsize=8)


def _mixing(analysis: RangeAnalysis, panels: Sequence[Axes]) -> None:
    for name, ax in zip(analysis.models, panels, strict=True):
        drawn: list[float] = []
        for role in ROLES:
            mixers = [mixer for mixer in analysis.models[name].mixing if mixer.role == role]
            values = [mixer.trace.per_parameter for mixer in mixers]
            errors = [mixer.trace.standard_error / mixer.trace.parameters for mixer in mixers]
            positions = [100 * mixer.position for mixer in mixers]
            color, marker = MIXERS[role]
            ax.errorbar(positions, values, errors, color=color, marker=marker, ms=4, lw=1, capsize=2)
            ax.plot([], [], color=color, marker=marker, ms=4, lw=1, label=f"{role}-mixing")
            drawn += values
        after = f", {name}" if len(analysis.models) > 1 else ""
        _axes(ax, f"mean Hessian trace per parameter ± standard error{after}", "nats / weight²", drawn, spread=1.0)
        ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    if len(panels) > 1:
        panels[0].sharey(panels[1])
        panels[0].autoscale(axis="y")


def _axes(ax: Axes, title: str, unit: str, values: list[float], spread: float = LOG_SCALE_RATIO) -> None:
    """Labels, and a logarithmic axis if all values are positive and their ratio is larger than ``spread``."""
    if min(values) > 0 and max(values) > spread * min(values):
        ax.set_yscale("log", nonpositive="clip")  # an error bar below 0 ends at the axis
    else:
        ax.set_ylim(min(0.0, 1.05 * min(values)), 1.05 * max(*values, 0.0) or 1.0)
    ax.set_xlim(-4, 104)
    ax.set_title(title, fontsize=9, loc="left")
    ax.set_xlabel("position, % of the depth", fontsize=8)
    ax.set_ylabel(unit, fontsize=8)
    ax.tick_params(which="both", labelsize=7)
    ax.grid(alpha=0.3)
