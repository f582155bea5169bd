"""``qplug cache``: list, measure and shrink the cache of calibration results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qplug.cli.app import Application, CacheFolder, Json, State, app, cache_of, print_json, screen_of, show

if TYPE_CHECKING:
    from qplug.core.storage.cache import Cache, CacheFile

cache = Application(
    help="List, measure and shrink the cache of calibration results.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(cache, name="cache")

Limit = Annotated[
    int | None,
    typer.Option("--limit", metavar="MB", min=0, help="Size to shrink to.", show_default="the limit of runs"),
]


@cache.command("list")
def cache_list(folder: CacheFolder = None, as_json: Json = False) -> None:
    """List the cached results, the least recently used first."""
    State.json = as_json
    found = _cache(folder)
    entries = found.entries()
    if as_json:
        print_json({**_summary(found, entries), "entries": [_entry(entry) for entry in entries]})
        return
    from qplug.cli.report.screen import Table

    rows = [(entry.kind, entry.key[:12], f"{entry.size / 1e6:.3f}", _when(entry)) for entry in entries]
    show([Table("Cache", ("result", "key", "MB", "last used"), rows, ("MB",), [_total(found, entries)])])


@cache.command("size")
def cache_size(folder: CacheFolder = None, as_json: Json = False) -> None:
    """Print the number and the size of the cached results by kind."""
    State.json = as_json
    found = _cache(folder)
    entries = found.entries()
    if as_json:
        print_json(_summary(found, entries))
        return
    from qplug.cli.report.screen import Table

    rows = [
        (kind, str(row["results"]), f"{row['size_mb']:.3f}") for kind, row in _summary(found, entries)["kinds"].items()
    ]
    show([Table("Cache", ("result", "number", "MB"), rows, ("number", "MB"), [_total(found, entries)])])


@cache.command("prune")
def cache_prune(folder: CacheFolder = None, limit: Limit = None, as_json: Json = False) -> None:
    """Remove the least recently used results until the rest fits the limit."""
    found = _cache(folder)
    _shrink(found, found.limit_mb if limit is None else limit, as_json)


@cache.command("clear")
def cache_clear(folder: CacheFolder = None, as_json: Json = False) -> None:
    """Remove all cached results. Files of others in the folder stay."""
    _shrink(_cache(folder), 0, as_json)


def _cache(folder: Any) -> Cache:
    found = cache_of(folder, disabled=False)
    assert found is not None
    return found


def _shrink(found: Cache, limit_mb: int, as_json: bool) -> None:
    State.json = as_json
    before = found.entries()
    found.prune(limit_mb)
    after = found.entries()
    removed, freed = len(before) - len(after), _megabytes(before) - _megabytes(after)
    if as_json:
        print_json({**_summary(found, after), "removed": removed, "freed_mb": freed, "warnings": found.warnings})
    else:
        screen = screen_of()
        screen.line(f"removed {removed} of {len(before)} results, {freed:.3f} MB")
        screen.line(_total(found, after))
        for warning in found.warnings:
            screen.line(f"warning: {warning}", "yellow", wrap=True)
    raise typer.Exit(1 if found.warnings else 0)


def _summary(found: Cache, entries: list[CacheFile]) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {}
    for entry in sorted(entries, key=lambda entry: entry.kind):
        row = kinds.setdefault(entry.kind, {"results": 0, "size_mb": 0.0})
        row["results"] += 1
        row["size_mb"] += entry.size / 1e6
    return {
        "status": "done",
        "folder": str(found.folder),
        "results": len(entries),
        "size_mb": _megabytes(entries),
        "limit_mb": found.limit_mb,
        "kinds": kinds,
    }


def _entry(entry: CacheFile) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "key": entry.key,
        "size_mb": entry.size / 1e6,
        "last_used": entry.used / 1e9,
        "file": str(entry.path),
    }


def _total(found: Cache, entries: list[CacheFile]) -> str:
    return f"{len(entries)} results, {_megabytes(entries):.3f} MB of at most {found.limit_mb} MB, in {found.folder}"


def _megabytes(entries: list[CacheFile]) -> float:
    return sum(entry.size for entry in entries) / 1e6


def _when(entry: CacheFile) -> str:
    from datetime import datetime

    return f"{datetime.fromtimestamp(entry.used / 1e9):%Y-%m-%d %H:%M}"
