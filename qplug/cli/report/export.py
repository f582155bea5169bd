"""What an export found out, as values and as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qplug.cli.report.run import number, percent
from qplug.cli.report.screen import Table

if TYPE_CHECKING:
    from qplug.export.export_run import Export
    from qplug.export.parity.check import Parity


def summary(result: Export, layers: bool) -> dict[str, Any]:
    """Everything that ``qplug export --json`` prints; every place that was compared where ``layers``."""
    parity = result.parity
    shown: dict[str, Any] = {"places": _places(parity)} if parity is not None and layers else {}
    return {
        "status": "done",
        "file": str(result.path),
        "format": result.format,
        "bytes": result.size,
        "float_bytes": result.float_size,
        "parity": None if parity is None else parity.summary(),
        **shown,
        "warnings": list(result.warnings),
    }


def tables(result: Export, layers: bool) -> list[Table]:
    """The file, how it agrees, and where ``layers`` every place that was compared."""
    rows = [
        ("file", str(result.path)),
        ("size", f"{result.size / 1e6:.3f} MB, {result.float_size / result.size:.1f} times less than float's weights"),
    ]
    found: list[Table] = []
    if result.parity is not None:
        rows += _rows(result.parity)
        if layers:
            places = [
                (place["place"], f"{place['norm']:.1e}", f"{place['largest']:.1e}", percent(place["off"], 1))
                for place in _places(result.parity)
            ]
            heads = ("place", "of the norm", "largest", "elements off, of one slice")
            found.append(Table("Places", heads, places, right=heads[1:]))
    return [*found, Table(f"Export ({result.format})", rows=rows)]


def _rows(parity: Parity) -> list[tuple[str, str]]:
    said = parity.summary()
    rows = [
        ("compared", f"{parity.images} evaluation images, in batches of {' and '.join(map(str, parity.batches))}"),
        ("top-1 agreement with the simulation", percent(said["top1_agreement"])),
        ("largest difference of a logit", f"{said['logits_largest_difference']:.2g}"),
        ("SQNR against the simulation", number(said["logits_sqnr_db"], "dB", 1)),
        ("logits differ by", f"{said['logits_norm_of_difference']:.1e} of their norm"),
        ("… and by rounding noise of 1e-6 alone", f"{parity.chaos:.1e}"),
        ("outputs behind fused kernels at most by", _norm(said["fused_largest_norm_of_difference"])),
        ("an operation differs at most by", f"{said['operations_largest_norm_of_difference']:.1e}, given its operands"),
    ]
    if parity.joined:
        rows.append(("compared in what reads them alone", f"{len(parity.joined)} operations, joined in the file"))
    return rows


def _norm(value: float | None) -> str:
    return "nothing is fused" if value is None else f"{value:.1e}"


def _places(parity: Parity) -> list[dict[str, Any]]:
    return [
        {
            "place": f"{operation}.{what}".lstrip("."),
            "norm": difference.norm,
            "largest": difference.largest,
            "off": difference.off,
        }
        for (operation, what), difference in parity.places.items()
    ]
