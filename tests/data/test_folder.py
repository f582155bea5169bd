"""Image folders: labels from the class map instead of the folders' order, and errors that name the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from qplug.core.errors import InputError
from qplug.data.folder import Folder, FolderImages


def open_folder(path: Path, seed: int = 0, **values: object) -> FolderImages:
    return Folder(Folder.Config(source="folder", path=str(path), **values)).open(seed)


def labels(images: FolderImages) -> dict[str, int]:
    return {Path(images.key(i)).parent.name: images[i][1] for i in range(len(images))}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for number, name in enumerate(("cat", "dog", "newt")):
        (root / name).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (4 + index, 4), (number, index, 0)).save(root / name / f"{index}.PNG")
    (root / "dog" / "notes.txt").write_text("no image")
    return root


def test_labels_follow_sorted_names_without_a_class_map(photos: Path) -> None:
    images = open_folder(photos)
    assert len(images) == 9
    assert labels(images) == {"cat": 0, "dog": 1, "newt": 2}


def test_numbered_folders_sort_as_numbers(tmp_path: Path) -> None:
    for name in ("0", "2", "10"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "a.png")
    assert labels(open_folder(tmp_path)) == {"0": 0, "2": 1, "10": 2}


@pytest.mark.parametrize("text", ["newt\naxolotl\ndog\ncat\n", "cat 3\ndog 2\n\tnewt  0\naxolotl 1\n\n"])
def test_labels_follow_the_class_map(photos: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "map.txt").write_text(text)
    assert labels(open_folder(photos, class_map=str(tmp_path / "map.txt"))) == {"cat": 3, "dog": 2, "newt": 0}


def test_class_map_that_does_not_fit_is_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text("cat\ncow\n")
    with pytest.raises(InputError, match=r"does not list 2 of the 3 class folders in .*: dog, newt") as error:
        open_folder(photos, class_map=str(tmp_path / "map.txt"))
    assert error.value.where == str(tmp_path / "map.txt")


def test_missing_and_empty_folders_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="not a folder"):
        open_folder(photos / "cat" / "0.PNG")
    with pytest.raises(InputError, match="is a character device, not a folder"):
        open_folder(Path("/dev/zero"))
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(InputError, match="is a link to a folder that does not exist: nowhere"):
        open_folder(tmp_path / "gone")
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    (tmp_path / "empty" / "cat" / "0.npy").touch()
    with pytest.raises(InputError, match=r"no class folder in it holds an image .*\n.*1 file is left out.*\.npy \(1\)"):
        open_folder(tmp_path / "empty")


def test_images_without_class_folders_have_no_labels(photos: Path) -> None:
    images = open_folder(photos / "cat")
    assert (len(images), images.classes, images[0][1]) == (3, None, None)
    with pytest.raises(InputError, match="lie in no class folders, so they have no labels") as error:
        images.label(0)
    assert error.value.where == str(photos / "cat")


def test_the_draw_depends_on_the_seed_and_too_many_are_refused(photos: Path) -> None:
    first, again, other = (open_folder(photos, seed, images=4) for seed in (0, 0, 1))
    keys = [[images.key(i) for i in range(4)] for images in (first, again, other)]
    assert keys[0] == keys[1] != keys[2]
    with pytest.raises(InputError, match="expected 1 … 9 images, received 10"):
        open_folder(photos, images=10)


def test_a_truncated_image_is_named_when_it_is_decoded(photos: Path) -> None:
    path = photos / "dog" / "1.PNG"
    path.write_bytes(path.read_bytes()[:40])
    images = open_folder(photos)
    at = [images.key(i) for i in range(len(images))].index(str(path))
    with pytest.raises(InputError, match="cannot be decoded") as error:
        images[at]
    assert error.value.where == str(path)


def test_real_images_take_their_labels_from_the_class_map(shared: Path) -> None:
    root = shared / "data/imagenet_sample"
    classes = (root / "class_map.txt").read_text().split()
    images = open_folder(root / "dev", class_map=str(root / "class_map.txt"))
    assert len(images) == 250
    for index in range(0, 250, 50):
        image, label = images[index]
        assert classes[label] == Path(images.key(index)).parent.name
        assert min(image.size) == 256
