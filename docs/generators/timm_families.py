"""Inspect and run the smallest model of every family of timm: python docs/generators/timm_families.py --keep rows.jsonl

Each model is measured in a process of its own, with a limit of time. Rows are appended to ``--keep`` as they come, so a
call that was stopped goes on where it was. The page is written anew after each row.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
PAGE = HERE.parents[1] / "timm-families.md"
SIZES = (64, 96, 128, 160, 192, 224, 256)
"""Sides of the tried images, in pixels, if they are smaller than the model's own."""
GOAL = 0.95
Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Measure what ``--keep`` lacks, and write the page."""
    options = _options(arguments)
    if options.one:
        print(json.dumps(measured(options.one, tuple(options.size))))
        return 0
    rows = {row["family"]: row for row in _read(options.keep) if not (options.retry and row["error"])}
    waiting = [family for family in options.families or _families() if family not in rows]
    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(lambda family: measure(family, options.limit, options.own_size), waiting):
            rows[row["family"]] = row
            with options.keep.open("a") as file:
                file.write(json.dumps(row) + "\n")
            options.out.write_text(page(rows.values(), options.limit))
            print(f"{row['family']}: {row['model']}, {_result(row)}, {row['seconds']:.0f} s", flush=True)
    options.out.write_text(page(rows.values(), options.limit))
    return 0


def _families() -> list[str]:
    import timm

    names: list[str] = timm.list_modules()
    return names


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, default=Path("timm-families.jsonl"), help="JSON lines of finished rows")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--limit", type=int, default=120, help="seconds for each model")
    parser.add_argument("--own-size", action="store_true", help="images of the model's own size, not of the smallest")
    parser.add_argument("--retry", action="store_true", help="measure rows with an error again")
    parser.add_argument("--families", nargs="*", help="modules of timm, such as levit; all unless given")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _read(keep: Path) -> list[Row]:
    return [json.loads(line) for line in keep.read_text().splitlines()] if keep.is_file() else []


def measure(family: str, limit: int, own_size: bool = False) -> Row:
    """The row of one family, measured in a process of its own."""
    name, parameters = smallest(family)
    size = smallest_size(name, () if own_size else SIZES)
    row: Row = {"family": family, "model": name, "parameters": parameters, "size": list(size), "error": ""}
    command = [sys.executable, str(HERE), "--one", name, "--size", *map(str, size)]
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        lines = done.stdout.strip().splitlines()
        found = json.loads(lines[-1]) if done.returncode == 0 and lines else {"error": _last_line(done.stderr)}
    except subprocess.TimeoutExpired:
        found = {"error": f"not finished within {limit} s"}
    return {**row, **found, "seconds": time.monotonic() - start}


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "the process ended without a word"


def smallest(family: str) -> tuple[str, int]:
    """timm's name of the family's member with the fewest parameters, and their number; not of models for tests."""
    import timm
    import torch

    counts: dict[str, int] = {}
    for name in timm.list_models(module=family):
        if name.startswith("test_") and len(timm.list_models(module=family)) > 1:
            continue
        try:
            with torch.device("meta"):
                counts[name] = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
        except Exception as error:  # a model that cannot be built without memory is not the smallest
            print(f"{name}: {error}", file=sys.stderr)
    name = min(counts, key=lambda name: counts[name])
    return name, counts[name]


def smallest_size(name: str, sizes: Sequence[int] = SIZES) -> tuple[int, int, int]:
    """The smallest input that the model takes among ``sizes`` and its own: (C, H, W) in pixels."""
    import timm
    import torch

    own = tuple(timm.get_pretrained_cfg(name).input_size)
    for side in (side for side in sizes if side < own[1]):
        for more in ({"img_size": side}, {}):
            try:
                with torch.device("meta"):
                    model = timm.create_model(name, **more).eval()
                    model(torch.empty(2, own[0], side, side))
            except Exception:
                continue
            return own[0], side, side
    return own[0], own[1], own[2]


def measured(name: str, size: tuple[int, int, int]) -> Row:
    """What inspect and a run say of one model: W8A8, min-max ranges, two images to calibrate and two to evaluate."""
    import warnings

    import torch

    import qplug
    from qplug.analysis.inspect import inspect
    from qplug.core.errors import QplugError
    from qplug.hooks.registry import component, installed
    from qplug.recipe import load_recipe

    warnings.simplefilter("ignore")
    row: Row = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.yaml")
        path.write_text(json.dumps(_recipe(name, size, Path(folder))))
        try:
            recipe = load_recipe(path)
            inspection = inspect(component(installed().models, recipe.model))
            row |= {"inspected": inspection.coverage, "sites": len(inspection.sites), "macs": inspection.total_macs}
            row["norms"], row["unknown"] = len(inspection.float_norms), sorted(set(inspection.unknown.values()))
            result = qplug.run(recipe, out=Path(folder, "run"))
            row["coverage"] = result.plan.coverage
            row["sqnr"] = result.metrics["quantized.logit_sqnr_db"]
            row["float"] = _in_float(result)
            row["warnings"] = result.warnings
            loaded = qplug.load_quantized(Path(folder, "run"))
            x = torch.randn(2, *size)
            with torch.no_grad():
                if not torch.equal(loaded(x), result.model(x)):
                    row["error"] = "the loaded model computes something else"
        except QplugError as error:
            row["error"] = str(error).replace("\n", " ")[:500]
    return row


def _in_float(result: Any) -> dict[str, float]:
    """Class of a module → its share of the MACs in float."""
    shares: Counter[str] = Counter()
    modules = dict(result.model.named_modules())
    for name, macs in result.plan.float_macs.items():
        shares[type(modules[name]).__name__ if name in modules else name] += macs / result.plan.total_macs
    return dict(shares)


def _recipe(name: str, size: tuple[int, int, int], folder: Path) -> dict[str, Any]:
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for split in ("calibration", "evaluation"):
        for label in ("0", "1"):
            target = folder / split / label
            target.mkdir(parents=True)
            pixels = draw.integers(0, 256, (size[1], size[2], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(target / "image.png")
    data = {split: {"source": "folder", "path": str(folder / split)} for split in ("calibration", "evaluation")}
    activations = {"bits": 8, "symmetric": False}
    return {
        "version": 1,
        "model": {"source": "timm", "name": name, "num_classes": 2, "preprocessing": {"input_size": list(size)}},
        "data": {**data, "batch_size": 2},
        "quantize": {"weights": {"bits": 8}, "activations": activations},
        "techniques": [{"use": "baseline.minmax"}],
    }


def page(rows: Iterable[Row], limit: int) -> str:
    """The page of all rows, in Markdown."""
    from importlib.metadata import version

    rows = sorted(rows, key=lambda row: row["family"])
    ran = [row for row in rows if not row["error"]]
    full = [row for row in ran if _share(row) >= 1.0]
    below = [row for row in ran if _share(row) < GOAL]
    lines = [
        "# The families of timm",
        "",
        "`python docs/generators/timm_families.py --keep rows.jsonl` writes this page.",
        "",
        f"**Protocol.** The member of each module of timm {version('timm')} with the fewest parameters, models for "
        "tests left out. Random weights; W8A8 with min-max ranges.",
        "Two images of noise to calibrate, two others to evaluate, of the size in the table.",
        f"{limit} s for each, in a process of its own, with torch {version('torch')} on {platform.machine()}.",
        "*Coverage* is the share of multiply-accumulates with two quantized operands.",
        "A loaded run folder gave the outputs of the run bit for bit, unless the row says otherwise.",
        "SQNR is that of the two other images. It is low where one leaves the ranges of those that calibrate.",
        "With random weights it says nothing of accuracy.",
        "",
        f"{len(rows)} families: {len(ran)} run, {len(full)} at 100 %, {len(ran) - len(below)} at {GOAL:.0%} or more.",
        "",
        "| family | model | M parameters | input | coverage | sites | SQNR | in float, or the error | s |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _share(row: Row) -> float:
    """Coverage of the run; 0 if operators without a formula leave it unknown."""
    share: float | None = row["coverage"]
    return 0.0 if share is None else share


def _line(row: Row) -> str:
    sqnr = f"{row['sqnr']:.1f} dB" if math.isfinite(row.get("sqnr", math.nan)) else "–"  # all outputs may be zero
    cells = (
        row["family"],
        f"`{row['model']}`",
        f"{row['parameters'] / 1e6:.1f}",
        "×".join(map(str, row["size"])),
        _result(row),
        str(row.get("sites", "–")),
        sqnr,
        _rest(row),
        f"{row['seconds']:.0f}",
    )
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _result(row: Row) -> str:
    if "coverage" in row:
        return "unknown" if row["coverage"] is None else f"{100 * row['coverage']:.1f} %"
    return "error"


def _rest(row: Row) -> str:
    parts = [row["error"]] if row["error"] else []
    parts += [f"{kind} {100 * share:.2g} %" for kind, share in row.get("float", {}).items()]
    if row.get("norms"):
        parts.append(f"{row['norms']} BatchNorms")
    parts += [f"no formula for {what}" for what in row.get("unknown", [])]
    if "inspected" in row and "coverage" in row and row["inspected"] != row["coverage"]:
        parts.append(f"inspect says {row['inspected']}")
    return "; ".join(parts)


if __name__ == "__main__":
    sys.path = [path for path in sys.path if Path(path).resolve() != HERE.parent]  # its modules' names are common ones
    sys.exit(main())
