"""Detectors as modules: images in lists, training, and bad input."""

import pytest
import torch
from detector_toys import IMAGES, images, small

from qplug.core.errors import InputError
from qplug.models.detectors.build import ARCHITECTURES, COCO, build


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build(small(classes=2)).eval()


@pytest.fixture(scope="module")
def given():
    return [image.float() for image in images()]


def test_detections_have_the_layout_of_torchvisions(model, given):
    with torch.no_grad():
        found = model(given)
    for one, (height, width) in zip(found, IMAGES, strict=True):
        count = len(one["scores"])
        assert 0 < count <= 100
        assert one["boxes"].shape == (count, 4)
        assert one["masks"].shape == (count, 1, height, width)
        assert set(one["labels"].tolist()) <= {1, 2}
        assert (one["scores"].diff() <= 0).all()
        assert (one["boxes"][:, 2:] <= torch.tensor([width, height]) + 1e-3).all()


def test_an_image_without_detections_has_empty_tensors(model, given, monkeypatch):
    monkeypatch.setattr(model.roi_heads, "score_thresh", 1.0)
    with torch.no_grad():
        (found,) = model(given[:1])
    assert [tuple(found[key].shape) for key in ("boxes", "scores", "masks")] == [(0, 4), (0,), (0, 1, *IMAGES[0])]


def test_it_learns_an_image_by_heart(given):
    """The losses of torchvision's parts fall."""
    torch.manual_seed(0)
    model = build(small()).train()
    masks = torch.zeros(1, *IMAGES[0], dtype=torch.uint8)
    masks[:, 20:60, 30:80] = 1
    target = {"boxes": torch.tensor([[30.0, 20, 80, 60]]), "labels": torch.tensor([2]), "masks": masks}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    totals = []
    for _ in range(8):
        losses = model([given[0]], [target])
        assert losses.keys() == {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.6 * totals[0]


def test_a_cascade_does_not_train(given):
    model = build(small("cascade_agnostic")).train()
    with pytest.raises(InputError, match="training mode") as error:
        model(given[:1], [{"boxes": torch.tensor([[1.0, 1, 9, 9]]), "labels": torch.tensor([1])}])
    assert "train a Mask R-CNN" in error.value.fix


def test_labels_of_coco_are_its_category_ids():
    assert (len(COCO), COCO[0], COCO[11], COCO[-1]) == (80, 1, 13, 90)
    with torch.device("meta"):
        assert build(ARCHITECTURES["mask_rcnn_swin_t"]).ids.shape == (81,)


def test_anchors_have_nominal_strides_and_exact_corners():
    """By hand: anchors of 32 pixels at stride 4, at the third position of the first row, ratio 0.5."""
    from torchvision.models.detection.image_list import ImageList

    from qplug.models.detectors.boxes import Anchors

    maps = [torch.zeros(1, 1, size, size) for size in (25, 13, 7, 4, 2)]
    (found,) = Anchors()(ImageList(torch.zeros(1, 3, 100, 100), [(100, 100)]), maps)
    width, height = 32 * 2**0.5, 32 / 2**0.5
    torch.testing.assert_close(found[6], torch.tensor([8 - width / 2, -height / 2, 8 + width / 2, height / 2]))
    assert found[-1].tolist()[0] == pytest.approx(64 - 512 / 2**0.5 / 2)
    assert len(found) == 3 * sum(size**2 for size in (25, 13, 7, 4, 2))
