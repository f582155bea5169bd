"""The result of ``qplug export`` as JSON values and as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qplug.cli.report.run import number, percent
from qplug.cli.report.screen import Table

if TYPE_CHECKING:
    from qplug.export.export_run import Export
    from qplug.export.parity.result import Parity


def export_summary(result: Export, layers: bool) -> dict[str, Any]:
    """The values that ``qplug export --json`` prints; with ``layers`` also every compared place."""
    parity = result.parity
    places: dict[str, Any] = {"places": _places(parity)} if parity is not None and layers else {}
    return {
        "status": "done",
        "file": str(result.path),
        "format": result.format,
        "bytes": result.size,
        "float_bytes": result.float_size,
        "parity": None if parity is None else parity.summary(),
        **places,
        "warnings": list(result.warnings),
    }


def export_tables(result: Export, layers: bool) -> list[Table]:
    """The file and its comparison with the simulation; with ``layers`` also every compared place."""
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
            heads = ("place", "difference / norm", "largest difference", "elements off in the worst slice")
            found.append(Table("Places", heads, places, right=heads[1:]))
    return [*found, Table(f"Export ({result.format})", rows=rows)]


def _rows(parity: Parity) -> list[tuple[str, str]]:
    values = parity.summary()
    noise = parity.rounding_noise
    rows = [
        ("compared", f"{parity.images} evaluation images, in batches of {' and '.join(map(str, parity.batches))}"),
        ("top-1 agreement with the simulation", percent(values["top1_agreement"])),
        ("largest difference of a logit", f"{values['logits_largest_difference']:.2g}"),
        ("SQNR against the simulation", number(values["logits_sqnr_db"], "dB", 1)),
        ("difference of the logits / norm", f"{values['logits_norm_of_difference']:.1e}"),
        ("… by rounding noise of 1e-6 alone", f"{noise:.1e}"),
        ("… of outputs behind fused kernels, at most", _norm(values["fused_largest_norm_of_difference"])),
        (
            "… of an operation given its operands, at most",
            f"{values['operations_largest_norm_of_difference']:.1e}",
        ),
    ]
    if parity.joined:
        rows.append(("compared in their reader", f"{len(parity.joined)} operations, merged in the file"))
    return rows


def _norm(value: float | None) -> str:
    return "no kernel is fused" if value is None else f"{value:.1e}"


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
