"""Untidy class folders: labels are timm's, nothing is counted twice, and what is left out is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from qplug.core.errors import InputError
from qplug.data import class_folders
from qplug.data.folder import Folder, FolderImages

NAMES = ("ant", "Bee", "cat", "Dog")


def open_folder(path: Path, **values: object) -> FolderImages:
    return Folder(Folder.Config(source="folder", path=str(path), **values)).open(0)


def image(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), level).save(path)
    return path


def tidy(root: Path, names: tuple[str, ...] = NAMES) -> Path:
    for name in names:
        for index in range(2):
            image(root / name / f"{index}.png")
    return root


def labels(images: FolderImages, root: Path) -> dict[str, int]:
    return {Path(images.key(i)).relative_to(root).parts[0]: images.label(i) for i in range(len(images))}


@pytest.mark.parametrize(
    "names",
    [
        NAMES,
        ("10", "9", "1", "100", "01a"),
        ("class 10", "class 9", "Class 8", "class  7", " class 6"),
        ("Ärger", "zebra", "äpfel", "éclair", "Zoo", "ßeta", "狗", "١٠", "٢"),
        ("a1b10", "a1b9", "A1b8", "a-1", "a_1", "a.1", "a+1", "x²"),
        ("n01440764", "n1440763", "N01440765"),
    ],
)
def test_the_order_is_that_of_timm(tmp_path: Path, names: tuple[str, ...]) -> None:
    from timm.data.readers.reader_image_folder import find_images_and_targets

    tidy(tmp_path, names)
    files, expected = find_images_and_targets(str(tmp_path))
    images = open_folder(tmp_path)
    assert images.classes is not None
    assert images.classes.labels == expected
    assert {images.key(i): images.label(i) for i in range(len(images))} == dict(files)


def test_names_that_timm_takes_for_equal_are_told_apart(tmp_path: Path) -> None:
    tidy(tmp_path, ("cat", "Cat", "1", "01", "²"))  # timm orders the first four by chance, and fails on the last
    assert labels(open_folder(tmp_path), tmp_path) == {"01": 0, "1": 1, "Cat": 2, "cat": 3, "²": 4}


def test_where_torchvision_sorts_otherwise_a_note_says_so(tmp_path: Path) -> None:
    classes = open_folder(tidy(tmp_path / "mixed")).classes
    assert classes is not None
    assert "label 0 is ant; in torchvision's order it is Bee" in classes.notes[0]
    assert str(classes) == "4 classes, ant … Dog"
    plain = open_folder(tidy(tmp_path / "plain", ("ant", "bee"))).classes
    assert plain is not None
    assert list(plain.notes) == []


def test_hidden_folders_and_those_of_systems_are_passed_over(tmp_path: Path) -> None:
    tidy(tmp_path)
    for place in (".ipynb_checkpoints", "@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN", ".git", "#recycle"):
        image(tmp_path / place / "0.png")
        image(tmp_path / "ant" / place / "0.png")
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "._0.png"):
        (tmp_path / "ant" / name).write_bytes(b"\0")
    images = open_folder(tmp_path)
    assert labels(images, tmp_path) == {"ant": 0, "Bee": 1, "cat": 2, "Dog": 3}
    assert (len(images), images.notes) == (8, [])


def test_the_data_set_itself_may_lie_in_a_hidden_folder(tmp_path: Path) -> None:
    assert len(open_folder(tidy(tmp_path / ".cache" / "@eaDir"))) == 8


def test_an_empty_class_folder_has_a_label(tmp_path: Path) -> None:
    tidy(tmp_path)
    for name in ("0.png", "1.png"):
        (tmp_path / "Bee" / name).unlink()
    images = open_folder(tmp_path)
    assert labels(images, tmp_path) == {"ant": 0, "cat": 2, "Dog": 3}
    assert images.classes is not None
    assert f"{tmp_path}: class folder Bee holds no image, and its label is counted" in images.classes.notes


@pytest.mark.parametrize("suffix", ["jfif", "JPE", "tga", "jp2"])
def test_every_image_that_pil_decodes_is_read(tmp_path: Path, suffix: str) -> None:
    tidy(tmp_path)
    image(tmp_path / "Bee" / f"2.{suffix.lower()}").rename(tmp_path / "Bee" / f"2.{suffix}")
    images = open_folder(tmp_path)
    index = [images.key(i) for i in range(len(images))].index(str(tmp_path / "Bee" / f"2.{suffix}"))
    assert (images[index][0].size, images[index][1]) == ((4, 4), 1)


def test_other_files_are_counted(tmp_path: Path) -> None:
    tidy(tmp_path)
    for name in ("cat/0.npy", "cat/1.NPY", "ant/deep/notes.txt", "ant/README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "classes.txt").touch()
    image(tmp_path / "stray.png")
    left_out, stray = open_folder(tmp_path).notes
    assert left_out.startswith(f"{tmp_path}: 4 files are left out, since PIL decodes no such images: .npy (2), ")
    assert "without a suffix (1)" in left_out
    assert stray == f"{tmp_path}: 1 file is left out, since no class folder holds it: stray.png"


@pytest.mark.parametrize("links", [["ant/again"], ["ant/up", "ant/down", "cat/up"], ["again"]])
def test_no_folder_is_walked_twice(tmp_path: Path, links: list[str]) -> None:
    root = tidy(tmp_path / "set")
    for link in links:
        (root / link).symlink_to("." if link == "again" else "..", target_is_directory=True)
    images = open_folder(root)
    assert (len(images), labels(images, root)) == (8, {"ant": 0, "Bee": 1, "cat": 2, "Dog": 3})
    assert f"each image is counted once: {', '.join(sorted(links))}" in images.notes[0]


def test_a_link_to_a_folder_above_the_data_set_is_not_followed(tmp_path: Path) -> None:
    root = tidy(tmp_path / "val")
    tidy(tmp_path / "train")
    (root / "ant" / "all").symlink_to("../..", target_is_directory=True)
    (root / "everything").symlink_to("..", target_is_directory=True)
    images = open_folder(root)
    assert (len(images), labels(images, root)) == (8, {"ant": 0, "Bee": 1, "cat": 2, "Dog": 3})


def test_links_to_other_places_are_followed(tmp_path: Path) -> None:
    root, store = tidy(tmp_path / "set"), tidy(tmp_path / "store", ("newt", "owl"))
    (root / "newt").symlink_to(store / "newt", target_is_directory=True)
    (root / "Bee" / "2.png").symlink_to(store / "owl" / "0.png")
    images = open_folder(root)
    assert (len(images), images.notes) == (11, [])
    assert labels(images, root)["newt"] == 4


def test_an_image_is_counted_once_however_many_links_lead_to_it(tmp_path: Path) -> None:
    tidy(tmp_path)
    (tmp_path / "Bee" / "0-copy.png").symlink_to("0.png")
    (tmp_path / "ant" / "bee.png").symlink_to("../Bee/0.png")
    (tmp_path / "bees").symlink_to("Bee", target_is_directory=True)
    os.link(tmp_path / "Dog" / "0.png", tmp_path / "Dog" / "2.png")
    images = open_folder(tmp_path)
    assert len(images) == 9
    links, twins = images.notes
    assert links.endswith("3 links lead to folders or images that are read already, and each image is counted once: "
                          "Bee/0-copy.png, ant/bee.png, bees")  # fmt: skip
    assert twins == f"{tmp_path}: 1 of its images is a hard link of another image, and counted too"


def test_dangling_links_and_special_files_are_refused_together(tmp_path: Path) -> None:
    tidy(tmp_path)
    (tmp_path / "ant" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "gone").symlink_to("nowhere", target_is_directory=True)
    (tmp_path / "cat" / "loop.png").symlink_to("loop.png")
    (tmp_path / "cat" / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "Dog" / "pipe.png")
    (tmp_path / "Dog" / ".#lock.png").symlink_to("user@host.123")  # an editor's lock
    with pytest.raises(InputError, match="cannot be read as images") as error:
        open_folder(tmp_path)
    for name in ("ant/gone.png (a link to", "gone (a link to", "cat/loop.png (too many levels", "cat/zero.png (a char",
                 "Dog/pipe.png (a pipe"):  # fmt: skip
        assert name in error.value.what
    assert error.value.where == str(tmp_path)


def test_a_folder_without_permission_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tidy(tmp_path)
    scan = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "cat":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(class_folders.os, "scandir", scandir)
    with pytest.raises(InputError, match="the folder cannot be read: Permission denied") as error:
        open_folder(tmp_path)
    assert error.value.where == str(tmp_path / "cat")


def test_an_image_that_vanished_is_named(tmp_path: Path) -> None:
    images = open_folder(tidy(tmp_path))
    (tmp_path / "ant" / "0.png").unlink()
    index = [images.key(i) for i in range(len(images))].index(str(tmp_path / "ant" / "0.png"))
    for look in (images.size_hint, images.digest, images.__getitem__):
        with pytest.raises(InputError, match=r"ant/0\.png: the (image|file) does not exist"):
            look(index)


@pytest.mark.parametrize("splits", [("train", "val"), ("Test",), ("train", "valid", "test")])
def test_the_folder_above_the_splits_is_refused(tmp_path: Path, splits: tuple[str, ...]) -> None:
    for split in splits:
        tidy(tmp_path / split)
    with pytest.raises(InputError, match="its folders are parts of a data set, not classes") as error:
        open_folder(tmp_path)
    assert (
        error.value.fix == f"set path to one of them, such as {tmp_path / (splits[-1] if len(splits) < 3 else 'valid')}"
    )


def test_classes_that_are_called_like_splits_are_classes(tmp_path: Path) -> None:
    assert labels(open_folder(tidy(tmp_path, ("test", "train"))), tmp_path) == {"test": 0, "train": 1}


def test_a_class_may_hold_folders(tmp_path: Path) -> None:
    tidy(tmp_path)
    image(tmp_path / "cat" / "images" / "more" / "0.png")
    images = open_folder(tmp_path)
    assert (len(images), labels(images, tmp_path)["cat"]) == (9, 2)
