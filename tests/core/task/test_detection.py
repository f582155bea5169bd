"""Detection: AP against a case that is done by hand, matching of two models, and the contract of tasks."""

import math

import pytest
import torch
from fastestdet import FastestDetBoxes

from qplug import InputError
from qplug.core.instances import Instances
from qplug.core.task.average_precision import CocoJudge
from qplug.core.task.detection import Detection
from qplug.core.task.detection_rows import pairs, suppressed
from qplug.testing import TaskContract

LEFT, RIGHT = (10.0, 10.0, 30.0, 40.0), (60.0, 20.0, 90.0, 50.0)


def objects(*boxes, kinds=None, **more):
    kinds = kinds or (1,) * len(boxes)
    areas = tuple((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes)
    return Instances((100, 100), tuple(boxes), tuple(kinds), (False,) * len(boxes), areas, **more)


def rows(*found, limit=4, side=0):
    """Detections (box, score, class) of one image, and empty rows."""
    some = torch.zeros(limit, 6 + side**2)
    for row, (box, score, kind) in zip(some, found, strict=False):
        row[:6] = torch.tensor([*box, score, kind])
        row[6:] = 1.0
    return some


class TestDetection(TaskContract):
    task = Detection(classes=4, background=True)

    def examples(self):
        outputs = torch.stack([rows((LEFT, 0.9, 1), (RIGHT, 0.4, 2)), rows((RIGHT, 0.8, 3))])
        return outputs, [objects(LEFT, RIGHT, kinds=(1, 2)), objects(RIGHT, kinds=(3,))]

    def noisy(self, outputs):
        there = outputs[..., 4:5] > 0
        return torch.where(there, outputs + torch.tensor([0.5, 0.5, -0.5, 0.5, -0.05, 0.0]), outputs)


class TestMasks(TestDetection):
    task = Detection(classes=4, side=4)

    def examples(self):
        left, right = ([[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in (LEFT, RIGHT))
        outputs = torch.stack([rows((LEFT, 0.9, 1), (RIGHT, 0.4, 2), side=4), rows((RIGHT, 0.8, 3), side=4)])
        labels = [objects(LEFT, RIGHT, kinds=(1, 2), masks=(left, right)), objects(RIGHT, kinds=(3,), masks=(right,))]
        return outputs, labels

    def noisy(self, outputs):
        return torch.cat([super().noisy(outputs[..., :6]), outputs[..., 6:]], -1)


class TestDense(TaskContract):
    task = FastestDetBoxes()

    def examples(self):
        outputs = torch.rand(2, 85, 4, 4, generator=torch.Generator().manual_seed(0))
        return outputs, [objects((0.0, 0.0, 80.0, 80.0), kinds=(3,))] * 2


def test_ap_of_a_case_by_hand():
    """Two objects of a class; the first is found, then a wrong one, and the second at an IoU of 0.8.

    Precision is 1 up to a recall of 0.5, and 2/3 up to 1 where the second counts: at 51 and 50 of 101 recalls.
    """
    near = (60.0, 20.0, 84.0, 50.0)
    outputs = rows((LEFT, 0.9, 1), ((40.0, 60.0, 50.0, 90.0), 0.8, 1), (near, 0.7, 1))[None]
    found = Detection().metrics(outputs, outputs, [objects(LEFT, RIGHT)])
    both = (51 + 50 * 2 / 3) / 101
    assert found["float.ap50"] == pytest.approx(both)
    assert found["float.ap"] == pytest.approx((7 * both + 3 * 51 / 101) / 10)  # 0.50 … 0.80, and 0.85 … 0.95
    assert Detection().by_example(outputs, outputs, [objects(LEFT, RIGHT)])["quantized.by_example"][0] == pytest.approx(
        found["float.ap"]
    )


def test_boxes_are_compared_in_pixels_of_the_image():
    label = objects(LEFT, RIGHT).scaled(2.0, 0.5)
    scaled = [(x1 * 2, y1 / 2, x2 * 2, y2 / 2) for x1, y1, x2, y2 in (LEFT, RIGHT)]
    outputs = rows(*((box, 0.9, 1) for box in scaled))[None]
    assert Detection().judge(outputs, [label]) == pytest.approx(1.0)
    assert Detection().judge(outputs, [objects(LEFT, RIGHT)]) == 0.0


def test_crowds_and_images_without_objects():
    crowd = Instances((100, 100), (RIGHT,), (1,), (True,), (900.0,))
    judge = CocoJudge([objects(LEFT), crowd])
    right = {"category_id": 1, "bbox": [10.0, 10.0, 20.0, 30.0], "score": 0.9}
    assert judge.measures([[right], [right | {"bbox": [60.0, 20.0, 10.0, 10.0]}]]) == pytest.approx((1.0, 1.0))
    assert math.isnan(judge.by_image([[right], []])[1])
    with pytest.raises(InputError, match="no image of the evaluation data has an object"):
        CocoJudge([Instances((9, 9), (), (), (), ())])


def test_detections_of_two_models_are_paired_by_place_and_class():
    first = rows((LEFT, 0.9, 1), (RIGHT, 0.8, 1), (RIGHT, 0.7, 2))
    second = rows((RIGHT, 0.9, 1), ((11.0, 11.0, 30.0, 40.0), 0.5, 1), (LEFT, 0.4, 3))
    assert pairs(first, second).tolist() == [1, 0, -1, -1]
    task = Detection()
    found = task.metrics(first[None], second[None], [objects(LEFT)])
    assert found["quantized.agreement"] == pytest.approx(2 * (0.5 + 0.8) / (2.4 + 1.8))
    assert task.agreement(first[None], second[None]) == 0
    assert task.agreement(first[None], first[None].flip(1)) == 1
    assert task.relative_change(first[None], first[None].flip(1)) == 0.0  # the order does not matter


def test_suppression_keeps_the_best_of_each_class():
    near = (11.0, 11.0, 30.0, 40.0)
    found = suppressed(rows((LEFT, 0.5, 1), (near, 0.9, 1), (near, 0.3, 2), (RIGHT, 0.0005, 1))[None], 0.45, 0.001, 3)
    assert found[0, :, 4].tolist() == pytest.approx([0.9, 0.3, 0.0])


def test_a_list_of_dicts_is_read():
    one = {"boxes": torch.tensor([LEFT]), "scores": torch.tensor([0.5]), "labels": torch.tensor([7])}
    none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    read = Detection(limit=2).read([one, none])
    assert read.shape == (2, 2, 6)
    assert read[0, 0].tolist() == [*LEFT, 0.5, 7.0]
    assert not read[1].any()
    assert Detection().read({"boxes": torch.zeros(1, 4)}) is None
    assert Detection().read([{"logits": torch.zeros(1)}]) is None


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (3, "the model predicts boxes, and a label is 3"),
        (objects(LEFT, kinds=(4,)), "an object has class 4, and the model has classes 1 … 3"),
        (objects(LEFT, kinds=(0,)), "an object has class 0, which is the background of the model"),
    ],
)
def test_labels_that_the_model_lacks_are_refused(label, message):
    assert Detection(classes=4, background=True).mismatch(label, (4, 6)) == message
