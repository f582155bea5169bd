"""Shared by the pictures. Only the modules of this package that end in ``picture`` import matplotlib.

They do not change matplotlib's global state: no pyplot, no rcParams.
"""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

LARGEST = 60.0
"""Largest side of a picture, in inches."""


def figure_of(width: float, height: float) -> Figure:
    """An empty figure of ``width`` × ``height`` inches, at most ``LARGEST`` each."""
    figure = Figure(figsize=(min(width, LARGEST), min(height, LARGEST)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def bytes_of(figure: Figure, format: str) -> bytes:
    """The bytes of the figure as a ``png`` or ``svg`` file without a date, so that they are reproducible."""
    stream = io.BytesIO()
    figure.savefig(stream, format=format, metadata={"Date": None} if format == "svg" else None)
    return stream.getvalue()
