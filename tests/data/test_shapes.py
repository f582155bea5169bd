"""Generated scenes: boxes and masks that belong to the pixels, and the same scenes every time."""

from __future__ import annotations

import pytest

from qplug import InputError
from qplug.core.storage.hashing import sha256
from qplug.data.shapes import SIDE, Shapes, scene
from qplug.testing import DataSourceContract


def opened(**more):
    return Shapes(Shapes.Config.model_validate({"source": "shapes_detection", "split": "test", **more})).open(0)


class TestShapes(DataSourceContract):
    source = Shapes
    configs = ({"split": "test", "images": 4}, {"split": "train", "images": 4})


def test_shapes_lie_within_the_scene_and_apart():
    for image, label in (opened(images=30)[index] for index in range(30)):
        assert image.size == (SIDE, SIDE)
        assert 1 <= len(label.boxes) <= 4
        assert set(label.classes) <= {1, 2, 3}
        for x1, y1, x2, y2 in label.boxes:
            assert 0 <= x1 < x2 <= SIDE
            assert 0 <= y1 < y2 <= SIDE
        for index, one in enumerate(label.boxes):
            others = label.boxes[:index]
            assert not any(one[0] < o[2] and o[0] < one[2] and one[1] < o[3] and o[1] < one[3] for o in others)


def test_boxes_and_areas_are_those_of_the_masks():
    from pycocotools import mask

    _, label = scene("test", 3)
    assert label.masks is not None
    for box, polygons, area in zip(label.boxes, label.masks, label.areas, strict=True):
        found = mask.toBbox(mask.merge(mask.frPyObjects(polygons, SIDE, SIDE)))
        assert [found[0], found[1], found[0] + found[2], found[1] + found[3]] == pytest.approx(list(box), abs=1.5)
        assert mask.area(mask.merge(mask.frPyObjects(polygons, SIDE, SIDE))) == pytest.approx(area, rel=0.15)


def test_a_scene_has_one_color_where_a_shape_is():
    image, label = scene("train", 7)
    x1, y1, x2, y2 = label.boxes[0]
    middle = (int((x1 + x2) / 2), int((y1 + y2) / 2))
    assert len({image.getpixel((middle[0] + dx, middle[1] + dy)) for dx in (0, 1) for dy in (0, 1)}) == 1


def test_scenes_of_the_splits_differ():
    digests = {sha256(scene(split, index)[0].tobytes()) for split in ("train", "test") for index in range(5)}
    assert len(digests) == 10


def test_more_scenes_than_there_are():
    with pytest.raises(InputError, match="expected 1 … 200 images, received 201"):
        opened(images=201)
