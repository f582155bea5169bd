"""A resumed training gives exactly the weights of an uninterrupted one."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from paths import ROOT
from safetensors.torch import load_file
from train_toys import recipe

from qplug.core.storage.cache import Cache
from qplug.pipeline.run import run
from qplug.training.supervised.loop import SupervisedTraining

SETTINGS = {
    "qat": {"ema": 0.9, "learn": {"zero_points": True}},
    "finetune": {"augment": {"scale": [0.6, 1.0]}, "accumulate": 2},
}


class Killed(BaseException):
    """An exception that no code catches."""


def outcome(tmp_path, name, cache, **more):
    out = tmp_path / name
    given = recipe(tmp_path, **{stage: {**values, **more} for stage, values in SETTINGS.items()})
    result = run(given, out=out, cache=cache)
    return result, load_file(out / "model.safetensors"), (out / "plan.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["finetune", "qat"])
@pytest.mark.parametrize("step", random.Random(0).sample(range(1, 15), 3))
def test_an_interruption_at_any_step_does_not_change_the_result(tmp_path, monkeypatch, stage, step):
    whole, weights, plan = outcome(tmp_path, "whole", None)
    plain = SupervisedTraining._step

    def stopped(self, model, parts, number):
        if self.problem.name == stage and number == step:
            raise Killed
        plain(self, model, parts, number)

    cache = Cache(tmp_path / "cache")
    monkeypatch.setattr(SupervisedTraining, "_step", stopped)
    with pytest.raises(Killed):
        outcome(tmp_path, "stopped", cache, checkpoint_minutes=0.0)
    seen = []
    monkeypatch.setattr(
        SupervisedTraining, "_step", lambda self, m, p, n: seen.append((self.problem.name, n)) or plain(self, m, p, n)
    )
    resumed, same, again = outcome(tmp_path, "resumed", cache)
    assert seen[0] == (stage, step)  # not from the start
    assert {name: history.loss for name, history in resumed.trainings.items()} == {
        name: history.loss for name, history in whole.trainings.items()
    }
    assert plan == again
    assert weights.keys() == same.keys()
    assert all(torch.equal(weights[name], same[name]) for name in weights)


CALL = "import sys; sys.path.insert(0, {tests!r}); from qplug.cli import main; main(sys.argv[1:])"


@pytest.mark.slow
def test_a_training_resumes_after_a_killed_process(tmp_path):
    """SIGKILL in a real process, at a random step."""
    given = tmp_path / "recipe.yaml"
    recipe(tmp_path, qat={"epochs": 40, "checkpoint_minutes": 0.0})
    call = [sys.executable, "-c", CALL.format(tests=str(ROOT / "tests/support")), "run", "--allow-code", str(given)]

    def start(out, cache):
        return subprocess.Popen([*call, "--out", str(tmp_path / out), "--cache", str(tmp_path / cache)], env=os.environ)

    assert start("whole", "one").wait() == 0
    process = start("killed", "two")
    while not (found := list((tmp_path / "two" / "training").rglob("*.safetensors"))):
        assert process.poll() is None, "it ended before a checkpoint was written"
        time.sleep(0.05)
    time.sleep(random.random())
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    assert len(found) == 1
    assert start("killed", "two").wait() == 0
    whole, same = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], same[name]) for name in whole)
    assert (tmp_path / "whole" / "plan.json").read_text() == (tmp_path / "killed" / "plan.json").read_text()
