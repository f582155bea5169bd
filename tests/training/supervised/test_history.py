"""The history of a training."""

import pytest

from qplug.training.supervised.history import POINTS, History


def history(steps, **more):
    found = History("qat", 2, steps, 32)
    found.loss = [float(steps - i) for i in range(steps)]
    found.top1 = [i / steps for i in range(steps)]
    found.held_out = [(0, 0.25), (steps // 2, 0.75), (steps, 0.5)]
    return found


def test_metrics_are_means_of_tenths_and_of_the_last_epoch():
    found = history(20).metrics()
    assert (found["qat.loss_first"], found["qat.loss_last"]) == (19.5, 1.5)
    assert found["qat.train_top1"] == pytest.approx(sum(i / 20 for i in range(10, 20)) / 10)
    assert [found[f"qat.held_out_{which}"] for which in ("first", "best", "last")] == [0.25, 0.75, 0.5]
    assert history(20).describe() == (
        "2 epochs of 32 images, 20 steps, loss 19.500 → 1.500, held-out top-1 25.0 → 50.0 %"
    )


def test_a_long_curve_is_thinned_by_means():
    found = history(3 * POINTS - 1)
    curve = found.curve()
    assert len(curve) == POINTS
    assert curve[0] == (3, found.loss[1], found.top1[1])
    assert curve[-1][0] == 3 * POINTS - 1
    assert history(7).curve()[0] == (1, 7.0, 0.0)
