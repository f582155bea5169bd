"""The result of ``qplug bench`` as JSON values and as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qplug.cli.report.screen import Table

if TYPE_CHECKING:
    from qplug.export.bench import Bench
    from qplug.export.operator_times import Profile
    from qplug.export.speed import Race


def bench_summary(found: Bench) -> dict[str, Any]:
    """The values that ``qplug bench --json`` prints: times in seconds per call, shares between 0 and 1."""
    return {
        "status": "done",
        "folder": str(found.folder),
        "format": found.form,
        "runtime": found.runtime,
        "compared": False,  # with the simulation
        "size_mb": {"float": found.megabytes[0], "quantized": found.megabytes[1]},
        "batches": [_race(one) for one in found.races],
        "profiles": [_profile(one) for one in found.profiles],
    }


def _race(one: Race) -> dict[str, Any]:
    spread = one.ratio
    return {
        "batch": one.batch,
        "threads": one.threads,
        "rounds": len(one.float_seconds),
        "float.seconds": one.float_spread.median,
        "quantized.seconds": one.quantized_spread.median,
        "float.images_per_second": one.batch / one.float_spread.median,
        "quantized.images_per_second": one.batch / one.quantized_spread.median,
        "ratio": spread.median,
        "ratio.quartiles": [spread.low, spread.high],
    }


def _profile(one: Profile) -> dict[str, Any]:
    rows = [
        {
            "operator": share.operator,
            "reads": "integers" if share.integer else "float",
            "nodes": share.nodes,
            "seconds": share.seconds,
            "share": share.seconds / one.seconds,
        }
        for share in one.shares
    ]
    return {"batch": one.batch, "float_share": one.float_share, "operators": rows}


def bench_tables(found: Bench) -> list[Table]:
    """Times side by side, then the profile of each batch."""
    return [_races(found), *(_operators(found, one) for one in found.profiles)]


def _races(found: Bench) -> Table:
    times_of = ("float (ms)", "quantized (ms)", "float (images/s)", "quantized (images/s)")
    columns = ("batch", "threads", *times_of, "ratio", "ratio's quartiles")
    rows = []
    for one in found.races:
        float_, quantized, spread = one.float_spread.median, one.quantized_spread.median, one.ratio
        times = (f"{1e3 * float_:.2f}", f"{1e3 * quantized:.2f}")
        rates = (f"{one.batch / float_:.1f}", f"{one.batch / quantized:.1f}")
        ratio = (f"{spread.median:.2f}", f"{spread.low:.2f}–{spread.high:.2f}")
        rows.append((str(one.batch), str(one.threads), *times, *rates, *ratio))
    rounds = len(found.races[0].float_seconds) if found.races else 0
    sizes = f"{found.megabytes[1]:.1f} MB against {found.megabytes[0]:.1f} MB"
    notes = [
        f"medians of {rounds} rounds, float and quantized in turns; the ratio is of the times of one round",
        f"{found.runtime}, {found.form} against float32 with the same optimizations; files {sizes}",
        f"not compared with the simulation; 'qplug export {found.folder} --format {found.form}' compares",
    ]
    return Table(f"Latency of {found.folder}", columns, rows, columns, notes)


def _operators(found: Bench, one: Profile) -> Table:
    columns = ("operator", "input", "nodes", "time (ms)", "share")
    rows = [
        (
            share.operator,
            "integers" if share.integer else "float",
            str(share.nodes),
            f"{1e3 * share.seconds:.2f}",
            f"{share.seconds / one.seconds:.1%}",
        )
        for share in one.shares
        if share.seconds >= one.seconds / 1000
    ]
    notes = [f"operators with float inputs take {one.float_share:.0%} of the time; those below 0.1 % are left out"]
    return Table(f"Time of the quantized model's operators, batch {one.batch}", columns, rows, columns[2:], notes)
