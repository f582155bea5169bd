"""Drawing, batching and decoding of every data set, and the refusal of overlap."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from qplug.core.errors import InputError
from qplug.data.digits import Digits
from qplug.data.folder import Folder
from qplug.data.image_files import decode
from qplug.data.loading import batches, check_disjoint, choose
from qplug.models.zoo import ZOO
from qplug.testing.run import ToyImages


def digits(split: str, images: int | None = None, seed: int = 0):
    return Digits(Digits.Config(source="digits", split=split, images=images)).open(seed)


def folder(path: Path, **values: object):
    return Folder(Folder.Config(source="folder", path=str(path), **values)).open(0)


def test_the_draw_is_the_same_on_every_machine() -> None:
    assert choose(1000, 5, 0, "") == [459, 206, 222, 162, 711]
    assert choose(1000, 32, 3, "") == choose(1000, 64, 3, "")[:32]
    assert choose(1000, 32, 0, "") != choose(1000, 32, 1, "")
    assert len(set(choose(1000, 1000, 0, ""))) == 1000
    assert list(choose(4, None, 0, "")) == [0, 1, 2, 3]


@pytest.mark.parametrize(("available", "images"), [(0, None), (0, 1), (3, 4), (3, 0)])
def test_invalid_numbers_of_images_are_refused(available: int, images: int | None) -> None:
    with pytest.raises(InputError, match=r"no images|expected 1 … 3 images, received") as error:
        choose(available, images, 0, "photos")
    assert error.value.where == "photos"


def test_batches_hold_every_image_once_in_order() -> None:
    images = digits("test", 10)
    transform = ZOO["vit_digits"].preprocessing.transform()
    pairs = list(batches(images, transform, 4))
    assert [tuple(pixels.shape) for pixels, _ in pairs] == [(4, 1, 8, 8), (4, 1, 8, 8), (2, 1, 8, 8)]
    assert torch.cat([labels for _, labels in pairs]).tolist() == [images[i][1] for i in range(10)]
    assert pairs[0][0].dtype == torch.float32
    assert pairs[0][1].dtype == torch.int64
    torch.testing.assert_close(pairs[2][0][1], transform(images[9][0]), rtol=0, atol=0)


@pytest.mark.parametrize("source", ["digits", "folder", "toy"])
def test_a_label_is_read_without_decoding_the_image(tmp_path: Path, source: str) -> None:
    for name in ("10", "2"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "a.png")
    images = {"digits": digits("test", 20), "folder": folder(tmp_path), "toy": ToyImages("test", 4, 0)}[source]
    labels = [images[index][1] for index in range(len(images))]
    assert len(set(labels)) > 1
    (tmp_path / "2/a.png").write_bytes(b"no image")
    assert [images.label(index) for index in range(len(images))] == labels


def test_batches_are_decoded_one_at_a_time_and_draw_no_random_numbers() -> None:
    images, decoded = digits("test"), []

    def transform(image: Image.Image) -> torch.Tensor:
        decoded.append(image)
        return torch.zeros(1, 8, 8)

    state = torch.random.get_rng_state()
    next(batches(images, transform, 16))
    assert len(decoded) == 16
    assert torch.equal(state, torch.random.get_rng_state())


def test_renamed_copies_are_refused_as_overlap(tmp_path: Path) -> None:
    for path, names in {"a/x": ("1.png", "2.png"), "b/x": ("3.png", "4.png")}.items():
        (tmp_path / path).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (8, 8), (int(name[0]), 0, 0)).save(tmp_path / path / name)
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b")
    check_disjoint(a, b)
    (tmp_path / "b/x/copy.png").write_bytes((tmp_path / "a/x/2.png").read_bytes())
    with pytest.raises(InputError, match=r"share 1 example:") as error:
        check_disjoint(a, folder(tmp_path / "b"))
    assert str(tmp_path / "a/x/2.png") in str(error.value)
    assert str(tmp_path / "b/x/copy.png") in str(error.value)


def test_the_error_lists_five_shared_examples_and_counts_the_others() -> None:
    with pytest.raises(InputError, match="share 40 examples") as error:
        check_disjoint(digits("train", 40), digits("train"))
    assert len(str(error.value).splitlines()) < 10
    assert str(error.value).count("digits[") == 5
    assert " and 35 more" in str(error.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif"])
def test_truncated_image_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"broken.{suffix}"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(InputError, match="cannot be decoded") as error:
        decode(path, str(path))
    assert error.value.where == str(path)


def test_image_of_sixteen_bits_is_refused_rather_than_clipped(tmp_path: Path) -> None:
    Image.new("I;16", (4, 4), 40000).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match="more than 8 bits"):
        decode(tmp_path / "deep.png", "deep.png")


def test_a_transform_may_convert_labels() -> None:
    class Places:
        def __call__(self, item: Image.Image) -> torch.Tensor:
            return torch.zeros(1)

        def label(self, item: Image.Image, label: int) -> tuple[int, int]:
            return label, item.size[0]

        def losses(self) -> list[str]:
            return []

    images = digits("test", 4)
    (_, labels), *_ = batches(images, Places(), 4)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [[images.label(i), 8] for i in range(4)]
