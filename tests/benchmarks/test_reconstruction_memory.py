"""Reconstruction holds what one block needs: the eighth takes no more memory than the second left behind."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

WORK = """
import ctypes
import gc
import sys
import torch
from timm.models import VisionTransformer
from qplug import hookimpl
from qplug import FloatModel, Preprocessing
from qplug.pipeline.run import run
from qplug.core.device import forget_peak_memory, peak_memory_mb
from qplug.testing.run import ToyModel, toy_recipe, toy_registry
from qplug_plugins.brecq import Brecq

torch.set_num_threads(1)
cpu = torch.device("cpu")


def load(self):
    torch.manual_seed(0)
    sizes = {"img_size": 64, "patch_size": 4, "embed_dim": 96, "num_heads": 4, "mlp_ratio": 2.0}
    model = VisionTransformer(depth=8, num_classes=5, **sizes)
    return FloatModel.of(model, "vit", Preprocessing((3, 64, 64), (0.5,) * 3, (0.25,) * 3, "nearest", 1.0))


class Watch:
    @hookimpl
    def qplug_observe(self, event):
        if event.stage == "reconstruction":
            if event.phase == "start":
                gc.collect()
                ctypes.CDLL(None).malloc_trim(0)  # what earlier stages freed would count as taken, or hide what is
                forget_peak_memory(cpu)
            seen[event.done] = peak_memory_mb(cpu)  # at the start: what is resident now


seen = {}
ToyModel.load = load
registry = toy_registry(Brecq)
recipe = toy_recipe(Brecq, registry=registry, iterations=2, batch_size=8, compile=sys.argv[1] == "compiled")
calibration = recipe.data.calibration.model_copy(update={"images": 48})
data = recipe.data.model_copy(update={"calibration": calibration, "batch_size": 8})
metrics = run(recipe.model_copy(update={"data": data}), registry=registry, observers=[Watch()]).metrics
assert metrics["images.calibration"] == 48
print(seen[3] - seen[0], seen[10] - seen[0])  # the patch embedding comes before the 8 blocks, the head after them
"""


def peaks(how: str) -> tuple[float, float]:
    """MB above what was resident before: at most until 2 blocks were done, and until all 8 and the head were.

    One model, whose own copies are there from the start: what its size takes is in both.
    """
    returned = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc gives every freed tensor back: no fragments
    done = subprocess.run([sys.executable, "-c", WORK, how], capture_output=True, text=True, check=False, env=returned)
    assert done.returncode == 0, done.stderr
    first, last = map(float, done.stdout.split()[-2:])
    return first, last


@pytest.mark.slow
@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_8_blocks_take_at_most_1_15_times_the_memory_of_2(benchmark, how: str):
    """By mean squares; the other losses also hold one batch's graph of all that lies behind the block."""

    def measure() -> float:
        first, last = peaks(how)
        print(f"\nmemory, {how}: {first:.0f} MB for 2 blocks, {last:.0f} MB for 8")
        return last / first

    multiple = benchmark.pedantic(measure, rounds=1, iterations=1)
    benchmark.extra_info["peak of 8 blocks over peak of 2"] = multiple
    assert multiple <= 1.15  # measured: 1.01; 1.18 while lowered blocks waited for the garbage collector
