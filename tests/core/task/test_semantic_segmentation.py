"""Semantic segmentation: mean IoU as torchmetrics counts it, resized logits, and labels that cannot be right."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_jaccard_index

from qplug.core.errors import InputError
from qplug.core.task import TASKS
from qplug.core.task.label_map import IGNORE, LabelMap, confusion, mean_iou, pixel_accuracy
from qplug.testing import TaskContract

TASK = TASKS["semantic_segmentation"]
DRAW = torch.Generator().manual_seed(5)
LOGITS = torch.randn(3, 4, 6, 8, generator=DRAW)
MAPS = [LabelMap(torch.randint(4, (12, 16), generator=DRAW).to(torch.uint8)) for _ in range(3)]
MAPS[0].values[:3] = IGNORE


class TestSegmentation(TaskContract):
    task = TASK

    def examples(self):
        return LOGITS, MAPS


def test_the_score_is_that_of_torchmetrics() -> None:
    large = F.interpolate(LOGITS, (12, 16), mode="bilinear", align_corners=False).argmax(1)
    truth = torch.stack([one.values for one in MAPS]).long()
    expected = multiclass_jaccard_index(large, truth, 4, average="macro", ignore_index=IGNORE)
    assert TASK.judge(LOGITS, MAPS) == pytest.approx(float(expected), abs=1e-6)
    judged = truth != IGNORE
    accuracy = float((large == truth)[judged].double().mean())
    assert TASK.metrics(LOGITS, LOGITS, MAPS)["quantized.pixel_accuracy"] == pytest.approx(accuracy)


def test_counts_by_hand() -> None:
    truth = torch.tensor([[0, 0, 1, IGNORE]], dtype=torch.uint8)
    counts = confusion(truth, torch.tensor([[0, 1, 1, 2]]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert mean_iou(counts) == pytest.approx((1 / 2 + 1 / 2) / 2)  # nothing has class 2, so it is left out
    assert pixel_accuracy(counts) == pytest.approx(2 / 3)
    assert math.isnan(mean_iou(torch.zeros(3, 3, dtype=torch.int64)))


def test_images_of_several_sizes_are_judged_at_their_own() -> None:
    logits = torch.zeros(2, 2, 2, 2)
    logits[:, 0, :, 0] = logits[:, 1, :, 1] = 10.0  # the right half is class 1
    half = [torch.cat([torch.zeros(h, w // 2), torch.ones(h, w // 2)], 1).to(torch.uint8) for h, w in ((4, 6), (8, 10))]
    assert TASK.judge(logits, [LabelMap(one) for one in half]) == 1.0
    assert TASK.by_example(logits, logits, [LabelMap(one) for one in half])["quantized.by_example"].shape == (2,)


def test_labels_beyond_the_classes_and_other_labels_are_refused() -> None:
    wrong = LabelMap(torch.full((2, 2), 4, dtype=torch.uint8))
    with pytest.raises(InputError, match="has class 4, and the model has classes 0 … 3"):
        TASK.check_labels([wrong], LOGITS[:1], "data.evaluation")
    assert TASK.mismatch(wrong, (4, 6, 8)) == "a label map has class 4, and the model has classes 0 … 3"
    assert TASK.mismatch(3, (4, 6, 8)) == "the model predicts a class for every pixel, and a label is 3"
    assert TASK.mismatch(MAPS[0], (4, 6, 8)) == ""
    assert MAPS[0].content() != MAPS[1].content()


def test_agreement_counts_images_and_shares_count_pixels() -> None:
    other = LOGITS.clone()
    other[0, :, 0, 0] = torch.tensor([9.0, 0.0, 0.0, 0.0]) if int(LOGITS[0, :, 0, 0].argmax()) else torch.eye(4)[1] * 9
    assert TASK.agreement(LOGITS, other) == 2  # 1 of 48 positions is more than 1 %
    assert TASK.metrics(LOGITS, other, MAPS)["quantized.agreement"] == pytest.approx(1 - 1 / 144)


def test_a_model_that_scores_nothing_is_doubted() -> None:
    (doubt,) = TASK.doubts(0.001)
    assert "mIoU 0.10%" in doubt
    assert "reduce_labels" in doubt
