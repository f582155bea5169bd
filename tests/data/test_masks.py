"""Images with masks: what is read, and one sentence for each mask that cannot be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qplug.core.errors import InputError
from qplug.core.task.label_map import IGNORE
from qplug.data.masks import MaskedImages, Masks


def write(root: Path, count: int = 3, size: tuple[int, int] = (6, 4)) -> None:
    """Images (W, H) in ``images/a``, and masks of classes 0 … 2 in ``masks/a``."""
    for folder in ("images/a", "masks/a"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.new("RGB", size, (index, 0, 0)).save(root / "images/a" / f"{index}.bmp")
        values = (np.arange(size[0] * size[1]).reshape(size[::-1]) + index) % 3
        mask(root, values.astype(np.uint8), index)


def mask(root: Path, values: Any, index: int = 0) -> None:
    Image.fromarray(values).save(root / "masks/a" / f"{index}.png")


def source(root: Path, **values: Any) -> MaskedImages:
    given = {"source": "masks", "path": str(root / "images"), "masks": str(root / "masks"), **values}
    return Masks(Masks.Config(**given)).open(0)


def test_maps_have_the_size_of_their_images(tmp_path: Path) -> None:
    write(tmp_path)
    found = source(tmp_path)
    assert len(found) == 3
    image, label = found[1]
    assert (image.size, tuple(label.values.shape)) == ((6, 4), (4, 6))
    assert label.values.flatten()[:4].tolist() == [1, 2, 0, 1]
    assert found.label(1).content() == label.content() != found.label(0).content()
    assert found.key(1).endswith("images/a/1.bmp")
    assert found.digest(0) != found.digest(1)
    assert len(source(tmp_path, images=2)) == 2


def test_a_palette_holds_classes_and_labels_can_be_reduced(tmp_path: Path) -> None:
    write(tmp_path)
    values = np.array([[0, 1, 2, 255, 1, 1]] * 4, dtype=np.uint8)
    picture = Image.fromarray(values, mode="L").convert("P")
    picture.putdata(values.flatten().tolist())
    picture.putpalette([index * 7 % 256 for index in range(768)])
    picture.save(tmp_path / "masks/a/0.png")
    assert source(tmp_path).label(0).values[0].tolist() == [0, 1, 2, IGNORE, 1, 1]
    assert source(tmp_path, reduce_labels=True).label(0).values[0].tolist() == [IGNORE, 0, 1, IGNORE, 0, 0]


def test_images_without_masks_are_for_calibration(tmp_path: Path) -> None:
    write(tmp_path)
    found = source(tmp_path, masks=None)
    assert found[0][1] is None
    with pytest.raises(InputError, match="the image has no label map"):
        found.label(0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((6, 4), dtype=np.uint8), "the mask has 4×6 pixels, and its image 6×4"),
        (np.zeros((4, 6, 3), dtype=np.uint8), "the mask holds colors"),
        (np.full((4, 6), 255, dtype=np.uint8), "every pixel of the mask is 255: none is judged"),
        (np.zeros((4, 6), dtype=np.uint16), "more than 8 bits per channel"),
    ],
)
def test_masks_that_cannot_be_right_are_named(tmp_path: Path, values: Any, message: str) -> None:
    write(tmp_path)
    mask(tmp_path, values)
    for read in (lambda: source(tmp_path).label(0), lambda: source(tmp_path)[0]):
        with pytest.raises(InputError, match=message) as error:
            read()
        assert error.value.where.endswith("masks/a/0.png")


def test_missing_masks_and_folders_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "masks/a/1.png").unlink()
    with pytest.raises(InputError, match="1 of 3 images have no mask of the same name: a/1") as error:
        source(tmp_path)
    assert "add a/1.png" in error.value.fix
    with pytest.raises(InputError, match="the folder of masks does not exist"):
        source(tmp_path, masks=str(tmp_path / "none"))
    with pytest.raises(InputError, match="the folder of images does not exist"):
        source(tmp_path, path=str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image is in the folder"):
        source(tmp_path, path=str(tmp_path / "empty"))
