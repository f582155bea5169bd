"""The table of FastestDet in docs/results.md: ``python tests/benchmarks/fastestdet_table.py [TECHNIQUE …]``.

It reads the weights and images of QPLUG_SHARED, and needs tests/support and tests/end_to_end on PYTHONPATH.
"""

from __future__ import annotations

import os
import sys
import time
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from test_fastestdet import recipe

import qplug
from qplug.hooks.registry import GROUP, build

TECHNIQUES = {
    "min-max": [{"use": "baseline.minmax"}],
    "MSE": [{"use": "baseline.mse"}],
    "Hessian-guided": [{"use": "baseline.hessian"}],
    "BRECQ": [{"use": "brecq.brecq", "iterations": 100, "batch_size": 8}, {"use": "baseline.mse"}],
}
BITS = ((8, 8), (6, 6), (4, 8), (4, 4))


def main(names: list[str]) -> None:
    """Print one row for each technique and pair of bits."""
    registry = build([*entry_points(group=GROUP), EntryPoint("fastestdet", "fastestdet", GROUP)])
    shared = Path(os.environ["QPLUG_SHARED"])
    for name in names or TECHNIQUES:
        for weights, inputs in BITS:
            images = 64 if name == "BRECQ" else 128
            plain = recipe(registry, shared, weights, inputs, images).model_dump(mode="json")
            wanted = type(recipe(registry, shared, weights, inputs)).model_validate(
                plain | {"techniques": TECHNIQUES[name]}
            )
            start = time.monotonic()
            m = qplug.run(wanted, registry=registry).metrics
            seconds = time.monotonic() - start
            figures = [f"{100 * m[f'quantized.{key}']:.1f}" for key in ("ap", "ap50", "agreement")]
            print(f"| W{weights}A{inputs} | {name} | {' | '.join(figures)} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
