"""The parts of a data set, found by the names of folders and files."""

import pytest

from qplug import InputError
from qplug.data.find import find_data


def folders(root, **parts):
    for part, classes in parts.items():
        for name in classes:
            (root / part / name).mkdir(parents=True)
            (root / part / name / "1.png").write_bytes(b"")
    return root


def test_train_and_val_with_the_classes_of_folders(tmp_path):
    found = find_data(folders(tmp_path, train=["ant", "bee"], val=["ant", "bee"]))
    assert found.train == {"source": "folder", "path": str(tmp_path / "train")}
    assert found.held_out == {"source": "folder", "path": str(tmp_path / "val")}
    assert found.classes == 2
    assert (
        found.notes[1] == f"evaluation: {tmp_path / 'val'}, 2 class folders, labels by the order of the folders' names"
    )


def test_names_of_imagenet_get_its_class_map_and_a_file_goes_before(tmp_path):
    folders(tmp_path, calib=["n01440764"], dev=["n01440764", "n01494475"])
    found = find_data(tmp_path)
    assert found.held_out["class_map"] == "imagenet"
    assert found.classes is None
    (tmp_path / "class_map.txt").write_text("n01440764\nn01494475\n")
    assert find_data(tmp_path).held_out["class_map"] == str(tmp_path / "class_map.txt")


def test_parts_that_are_not_used_are_named(tmp_path):
    found = find_data(folders(tmp_path, Train=["a"], val=["a"], test=["a"]))
    assert found.held_out["path"] == str(tmp_path / "val")
    assert found.notes[-1] == f"not used: test in {tmp_path}"


def test_calibration_needs_no_class_folders(tmp_path):
    folders(tmp_path, val=["a"])
    (tmp_path / "train").mkdir()
    assert "images without class folders" in find_data(tmp_path).notes[0]


def test_parquet_files_by_the_words_in_their_names(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00001", "validation-00000-of-00001"):
        (tmp_path / "data" / f"{name}.parquet").write_bytes(b"")
    found = find_data(tmp_path)
    assert found.train == {"source": "hf", "path": str(tmp_path), "split": "train"}
    assert found.held_out["split"] == "validation"


def test_what_is_no_data_set_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(InputError, match="the folder does not exist"):
        find_data(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file, not a folder"):
        find_data(tmp_path / "file")
    with pytest.raises(InputError, match="it holds no folder and no parquet file"):
        find_data(tmp_path)
    folders(tmp_path / "one", train=["a"])
    with pytest.raises(InputError, match="holds train, and none of val, valid, validation"):
        find_data(tmp_path / "one")
    with pytest.raises(InputError, match=r"holds no parts of a data set itself[\s\S]*give .*two"):
        find_data(folders(tmp_path / "outer" / "two", train=["a"], val=["a"]).parent)
    folders(tmp_path / "flat", train=["a"])
    (tmp_path / "flat" / "val").mkdir()
    with pytest.raises(InputError, match="no labels to measure against"):
        find_data(tmp_path / "flat")
    (tmp_path / "pq").mkdir()
    (tmp_path / "pq" / "train.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="only one part of a data set"):
        find_data(tmp_path / "pq")


@pytest.mark.parametrize(
    ("files", "path", "annotations"),
    [
        (
            [
                "train2017/1.jpg",
                "val2017/2.jpg",
                "annotations/instances_train2017.json",
                "annotations/instances_val2017.json",
            ],
            "val2017",
            "annotations/instances_val2017.json",
        ),
        (
            ["train/1.jpg", "train/_annotations.coco.json", "valid/2.jpg", "valid/_annotations.coco.json"],
            "valid",
            "valid/_annotations.coco.json",
        ),
        (
            ["train/images/1.jpg", "train/boxes.json", "train/instances.json", "val/images/2.jpg", "val/boxes.json"],
            "val/images",
            "val/boxes.json",
        ),
    ],
)
def test_cocos_layout_is_found_with_its_annotations(tmp_path, files, path, annotations):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_data(tmp_path)
    assert found.held_out == {
        "source": "coco",
        "path": str(tmp_path / path),
        "annotations": str(tmp_path / annotations),
    }
    assert found.classes is None
    assert found.notes[1] == f"evaluation: {tmp_path / path}, objects by {tmp_path / annotations}"
