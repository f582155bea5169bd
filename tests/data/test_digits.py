"""The embedded digits: a fixed split, and images drawn by the seed."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from qplug.core.errors import InputError
from qplug.data.digits import Digits, arrays
from qplug.data.loading import check_disjoint


def source(split: str, images: int | None = None) -> Digits:
    return Digits(Digits.Config(source="digits", split=split, images=images))


def test_split_is_disjoint_complete_and_stratified() -> None:
    (_, train, train_indices), (_, test, test_indices) = arrays("train"), arrays("test")
    assert sorted([*train_indices, *test_indices]) == list(range(1797))
    assert (len(train_indices), len(test_indices)) == (1198, 599)
    fraction = np.bincount(test) / (np.bincount(train) + np.bincount(test))
    assert np.all(np.abs(fraction - 1 / 3) < 0.005)
    check_disjoint(source("train").open(0), source("test").open(0))


def test_split_is_the_one_that_the_checkpoint_was_trained_on() -> None:
    assert arrays("test")[2][:8].tolist() == [3, 5, 7, 13, 16, 19, 22, 26]
    assert arrays("train")[2][:8].tolist() == [0, 1, 2, 4, 6, 8, 9, 10]


def test_the_seed_changes_the_draw_and_not_the_split() -> None:
    chosen = [source("train", 32).open(seed) for seed in (0, 0, 1)]
    keys = [[images.key(i) for i in range(32)] for images in chosen]
    assert keys[0] == keys[1] != keys[2]
    assert len(set(keys[0])) == 32
    check_disjoint(chosen[2], source("test").open(5))


def test_image_is_grey_in_eight_bits_with_a_digest_of_its_pixels() -> None:
    images = source("test").open(0)
    image, label = images[0]
    assert (image.mode, image.size) == ("L", (8, 8))
    assert (arrays("test")[0].min(), arrays("test")[0].max()) == (0, 255)
    assert 0 <= label <= 9
    assert images.size_hint(0) == 64
    assert len(images.digest(0)) == 64


def test_zero_images_and_too_many_are_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        source("train", 0)
    with pytest.raises(InputError, match="expected 1 … 1198 images, received 1199"):
        source("train", 1199).open(0)
