"""Two processes on CPUs give the losses of one process, and one run folder."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
RECIPE = """
version: 1
model: {source: zoo, name: vit_digits}
data:
  calibration: {source: digits, split: train, images: 16}
  evaluation: {source: digits, split: test, images: 50}
  training: {source: digits, split: train, images: 160}
quantize: {weights: {bits: 8}, activations: {bits: 8}}
techniques: [{use: baseline.minmax}]
"""
TRAINING = {"epochs": 2, "batch_size": 31, "optimizer": "sgd", "learning_rate": 0.01, "hold_out": 5}


def losses(tmp_path: Path, count: int, **sections) -> dict[str, list[float]]:
    """The loss curves of a run by ``count`` processes."""
    given = tmp_path / f"{count}.yaml"
    given.write_text(RECIPE + "".join(f"{name}: {json.dumps(values)}\n" for name, values in sections.items()))
    out = tmp_path / f"run-{count}"
    arguments = ["-m", "qplug", "run", str(given), "--out", str(out), "--cache", str(tmp_path / f"cache-{count}")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    several = ["-m", "torch.distributed.run", "--nproc_per_node", str(count), "--master_port", str(port)]
    call = [sys.executable, *(several if count > 1 else []), *arguments]
    done = subprocess.run(call, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Results") == 1  # the main process alone prints
    history = json.loads((out / "training.json").read_text())
    assert all(stage[f"{name}.processes"] == count for name, stage in history.items())
    return {name: [loss for _, loss, _ in stage["curve"]["points"]] for name, stage in history.items()}


def test_two_processes_have_the_loss_curve_of_one(tmp_path):
    """An odd batch, augmentation and accumulation: the number of processes and parts has no influence."""
    settings = {**TRAINING, "augment": {"scale": [0.8, 1.0], "hflip": 0.0}}
    one = losses(tmp_path, 1, finetune=settings)["finetune"]
    two = losses(tmp_path, 2, finetune={**settings, "accumulate": 3})["finetune"]
    assert len(one) == 10
    assert two == pytest.approx(one, rel=1e-5)


def test_two_processes_train_the_quantized_model_like_one(tmp_path):
    """At the rate that a recipe has by default.

    What is rounded is less patient than a float model: where the order of a sum moves a value by 1e-7 over the edge of
    a code, it moves by a whole step.
    """
    settings = {**TRAINING, "optimizer": "adamw", "learning_rate": 2e-5, "augment": None}
    one, two = (losses(tmp_path, count, qat=settings)["qat"] for count in (1, 2))
    assert two[0] == pytest.approx(one[0], rel=1e-6)
    assert two == pytest.approx(one, rel=1e-3)
