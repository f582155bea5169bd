"""Reconstruction holds what one block needs, so that a deeper model takes no more memory than its own size."""

from __future__ import annotations

import subprocess
import sys

import pytest

WORK = """
import gc
import sys
import torch
from timm.models import VisionTransformer
from qplug import hookimpl
from qplug.memory import keep_freed_memory
from qplug.models import FloatModel, Preprocessing
from qplug.pipeline import run
from qplug.runtime import forget_peak_memory, peak_memory_mb
from qplug.testing.run import ToyModel, toy_recipe, toy_registry
from qplug_brecq import Brecq

torch.set_num_threads(1)
keep_freed_memory()  # as the command line does
depth = int(sys.argv[1])
cpu = torch.device("cpu")


def load(self):
    torch.manual_seed(0)
    sizes = {"img_size": 64, "patch_size": 4, "embed_dim": 96, "num_heads": 4, "mlp_ratio": 2.0}
    model = VisionTransformer(depth=depth, num_classes=5, **sizes)
    return FloatModel.of(model, "vit", Preprocessing((3, 64, 64), (0.5,) * 3, (0.25,) * 3, "nearest", 1.0))


class Watch:
    @hookimpl
    def qplug_observe(self, event):
        if event.stage == "reconstruction" and event.phase in ("start", "end"):
            if event.phase == "start":
                gc.collect()
                forget_peak_memory(cpu)
            seen.append(peak_memory_mb(cpu))  # at the start: what is resident now


seen = []
ToyModel.load = load
registry = toy_registry(Brecq)
recipe = toy_recipe(Brecq, registry=registry, iterations=2, batch_size=8)
calibration = recipe.data.calibration.model_copy(update={"images": 64})
data = recipe.data.model_copy(update={"calibration": calibration, "batch_size": 8})
metrics = run(recipe.model_copy(update={"data": data}), registry=registry, observers=[Watch()]).metrics
assert metrics["images.calibration"] == 64
print(seen[1] - seen[0], metrics["float.size_mb"])
"""
COPIES = 2
"""Models that reconstruction makes: the float one as it was, and the quantised one."""


def peak(depth: int) -> float:
    """MB that reconstruction takes at most, above what was resident before it and the copies of the model."""
    command = [sys.executable, "-c", WORK, str(depth)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    taken, size = map(float, done.stdout.split()[-2:])
    return taken - COPIES * size


@pytest.mark.slow
def test_8_blocks_take_at_most_1_15_times_the_memory_of_2(benchmark):
    """By mean squares; the other losses also hold one batch's graph of all that lies behind the block."""

    def measure() -> float:
        peaks = {depth: peak(depth) for depth in (8, 2)}
        print(f"\nmemory: {peaks[2]:.0f} MB for 2 blocks, {peaks[8]:.0f} MB for 8")
        return peaks[8] / peaks[2]

    multiple = benchmark.pedantic(measure, rounds=1, iterations=1)
    benchmark.extra_info["peak of 8 blocks over peak of 2"] = multiple
    assert multiple <= 1.15
