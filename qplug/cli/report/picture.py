"""What the pictures share. Only modules of this package that end in ``picture`` import matplotlib.

They leave matplotlib's global state alone: no pyplot, no rcParams.
"""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

LARGEST = 60.0
"""Inches."""


def figure_of(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, within ``LARGEST``."""
    figure = Figure(figsize=(min(width, LARGEST), min(height, LARGEST)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def bytes_of(figure: Figure, format: str) -> bytes:
    """The figure as the bytes of a ``png`` or ``svg`` file, which hold no date."""
    stream = io.BytesIO()
    figure.savefig(stream, format=format, metadata={"Date": None} if format == "svg" else None)
    return stream.getvalue()
