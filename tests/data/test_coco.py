"""Images with objects in COCO's layout: what is read, and what is refused with one sentence."""

from __future__ import annotations

import json

import pytest
from coco_toys import coco_config, write_coco

from qplug import InputError
from qplug.data.coco import Coco
from qplug.testing import DataSourceContract


def opened(folder, seed=0, **more):
    return Coco(Coco.Config.model_validate(coco_config(folder, **more))).open(seed)


class TestCoco(DataSourceContract):
    source = Coco

    @pytest.fixture
    def parameters(self, tmp_path):
        write_coco(tmp_path)
        return coco_config(tmp_path, images=3)


def test_boxes_masks_and_categories(tmp_path):
    content = write_coco(tmp_path)
    images = opened(tmp_path)
    image, label = images[1]
    first, second = content["annotations"][2:4]
    x, y, w, h = first["bbox"]
    assert image.size == (60, 40)
    assert label.size == (40, 60)
    assert label.boxes[0] == (x, y, x + w, y + h)
    assert label.classes == (first["category_id"], second["category_id"])
    assert label.areas[0] == w * h
    assert label.masks == (first["segmentation"], second["segmentation"])
    assert label.crowd == (False, False)
    assert images.classes.labels == {"red": 1, "green": 3, "blue": 7}
    assert images.notes == []


def test_positions_of_categories(tmp_path):
    content = write_coco(tmp_path)
    images = opened(tmp_path, labels="position")
    place = {1: 0, 3: 1, 7: 2}
    expected = tuple(place[one["category_id"]] for one in content["annotations"][:2])
    assert images.label(0).classes == expected
    assert images.classes.labels == {"red": 0, "green": 1, "blue": 2}


def test_other_objects_are_other_data(tmp_path):
    content = write_coco(tmp_path)
    before = Coco(Coco.Config.model_validate(coco_config(tmp_path))).key(0)
    content["annotations"][0]["bbox"][0] += 1
    (tmp_path / "objects.json").write_text(json.dumps(content))
    assert Coco(Coco.Config.model_validate(coco_config(tmp_path))).key(0) != before


def test_what_is_left_out_is_told(tmp_path):
    content = write_coco(tmp_path)
    content["images"].pop()
    content["annotations"] = content["annotations"][:4]
    content["annotations"][0]["bbox"][2] = 0
    (tmp_path / "objects.json").write_text(json.dumps(content))
    images = opened(tmp_path)
    assert len(images.label(0).boxes) == 1
    assert images.notes == [
        f"{tmp_path / 'images'}: 1 images are not listed in the annotations, and left out",
        "1 of 3 images have no object: every detection there is wrong",
        "1 objects without width or height are left out",
    ]


def of_object(**values):
    return lambda content: content["annotations"][0].update(values)


def of_image(**values):
    return lambda content: content["images"][0].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            of_object(bbox=[50, 10, 20, 10]),
            r"from \(50, 10\) to \(70, 20\) lies outside of its image of 60 × 40 pixels",
        ),
        (of_object(bbox=[-5, 10, 20, 10]), r"from \(-5, 10\) to \(15, 20\) lies outside of its image"),
        (of_object(bbox=[1, 2, -3, 4]), r"bbox must be x, y, width and height in pixels, received \[1, 2, -3, 4\]"),
        (of_object(bbox=[1, 2, 3]), r"bbox must be x, y, width and height in pixels, received \[1, 2, 3\]"),
        (of_object(bbox="box"), "bbox must be x, y, width and height in pixels, received 'box'"),
        (of_object(category_id=2), "annotation 1 has category 2, which the file does not list"),
        (of_object(image_id=99), "annotation 1 is of image 99, which the file does not list"),
        (of_image(file_name="gone.png"), r"1 of 4 images of the annotations have no file: gone\.png"),
        (of_image(id=1), "image 1 is listed twice"),
        (of_image(width=None), "image 0 has no width"),
        (lambda content: content["annotations"].clear(), "the file has no annotation of any object"),
        (lambda content: content["images"].clear(), "annotation 1 is of image 0, which the file does not list"),
        (lambda content: content["categories"].clear(), "the file lists no categories with whole numbers as ids"),
        (lambda content: content.pop("annotations"), "the file of annotations has no list 'annotations'"),
    ],
)
def test_annotations_that_cannot_be_right_are_refused(tmp_path, change, message):
    content = write_coco(tmp_path)
    change(content)
    (tmp_path / "objects.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        opened(tmp_path)


def test_files_that_are_missing_or_no_json(tmp_path):
    write_coco(tmp_path)
    with pytest.raises(InputError, match="the folder does not exist"):
        opened(tmp_path, path=str(tmp_path / "none"))
    with pytest.raises(InputError) as error:
        opened(tmp_path, annotations=str(tmp_path / "none.json"))
    assert error.value.where == str(tmp_path / "none.json")
    (tmp_path / "objects.json").write_text("{")
    with pytest.raises(InputError, match="the file of annotations is no JSON"):
        opened(tmp_path)


def test_an_image_of_another_size_than_annotated(tmp_path):
    content = write_coco(tmp_path)
    content["images"][0]["width"] = 61
    (tmp_path / "objects.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="the image has 60 × 40 pixels, and its annotation says 61 × 40"):
        opened(tmp_path)[0]
