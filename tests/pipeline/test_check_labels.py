"""Labels are compared with the model's outputs in ``load``; calibration needs none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from qplug_plugins.baseline import MinMax
from torch import nn

import qplug
from qplug.core.errors import InputError, PluginError
from qplug.core.examples import Classes
from qplug.core.task import TASKS
from qplug.core.text import Alarm
from qplug.data.folder import Folder
from qplug.models.float_model import FloatModel, Preprocessing
from qplug.pipeline import check_labels as module
from qplug.pipeline.check_labels import check_labels
from qplug.testing.run import ToyData, ToyImages, toy_recipe, toy_registry
from qplug.testing.toys import SIZE


def model(outputs: int, num_classes: int | None = None) -> FloatModel:
    module = nn.Linear(1, outputs)
    module.num_classes = num_classes
    return FloatModel.of(module, "head", Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "nearest", 1))


def checked(outputs: int, examples: Any, **values: Any) -> list[str]:
    return check_labels(model(outputs, **values), (outputs,), {"data.evaluation": examples, "data.training": None})


class Examples(ToyImages):
    """Toy images with given labels."""

    def __init__(self, labels: Sequence[Any], classes: Classes | None = None) -> None:
        super().__init__("test", len(labels), 0)
        self._given, self.classes = labels, classes

    def label(self, index: int) -> Any:
        return self._given[index]


def check(outputs: int, labels: Sequence[Any], classes: Classes | None = None) -> list[str]:
    return checked(outputs, Examples(labels, classes))


def folder(root: Path, names: Sequence[str], class_map: str | None = None) -> Any:
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("L", (4, 4)).save(root / name / "0.png")
    return Folder(Folder.Config(source="folder", path=str(root), class_map=class_map)).open(0)


def refusal(outputs: int, examples: Any, **values: Any) -> InputError:
    with pytest.raises(InputError) as error:
        checked(outputs, examples, **values)
    return error.value


def test_labels_that_fit_pass() -> None:
    assert check(3, [0, 2, 1]) == []


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (3, "example toy/test/1 has label 3, and the model has outputs 0 … 2"),
        (-1, "has label -1"),
        (10**23, "has label 1000"),
        (1.5, r"a label must be an integer, or a pair .*, received 1\.5"),
        (True, "received True"),
        ("cat", "received 'cat'"),
        (None, "received None"),
        ((0, 1), "the model predicts classes, and the labels are answers to questions"),
    ],
)
def test_a_label_without_an_output_is_refused(label: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(3, [0, label])


def test_integers_of_numpy_and_torch_are_labels() -> None:
    import numpy as np

    assert check(3, [np.int64(2), torch.tensor(1), np.uint8(0)]) == []


@pytest.mark.parametrize(("outputs", "shown"), [(1000, "1,000"), (2, "2")])
def test_another_number_of_class_folders_is_refused_with_the_fix(tmp_path: Path, outputs: int, shown: str) -> None:
    error = refusal(outputs, folder(tmp_path, ("ant", "bee", "cat")))
    assert f"the data has 3 classes, ant … cat, and the model has {shown} outputs" in error.what
    assert error.where == f"data.evaluation, {tmp_path}"
    assert f"set data.evaluation.class_map to a text file that lists the {shown} classes" in error.fix
    assert "or give a model with 3 outputs" in error.fix


def test_folders_of_imagenet_are_told_the_class_map_that_exists(tmp_path: Path) -> None:
    names = ("n01440764", "n01443537", "n15075141")
    assert "set data.evaluation.class_map: imagenet" in refusal(1000, folder(tmp_path / "a", names)).fix
    images = folder(tmp_path / "b", names, "imagenet")
    assert [images.label(index) for index in range(3)] == [0, 1, 999]
    assert checked(1000, images) == []


def test_the_folder_above_the_classes_is_told_from_them(tmp_path: Path) -> None:
    for place in ("photos", "sketches"):
        folder(tmp_path / place, ("ant", "bee", "cat"))
    error = refusal(3, Folder(Folder.Config(source="folder", path=str(tmp_path))).open(0))
    assert error.fix == f"set data.evaluation.path to {tmp_path / 'photos'}, which has 3 class folders"


def test_a_class_map_of_another_length_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text("ant\nbee\n")
    images = folder(tmp_path / "set", ("ant", "bee"), str(tmp_path / "map.txt"))
    (warning,) = checked(3, images)
    assert warning == "data.evaluation: the class map map.txt lists 2 classes, and the model has 3 outputs"


def test_a_class_map_that_counts_from_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text("ant 1\nbee 2\ncat 3\n")
    error = refusal(3, folder(tmp_path / "set", ("ant", "bee"), str(tmp_path / "map.txt")))  # no image of label 3
    assert error.what == "the class map map.txt gives class cat the label 3, and the model has outputs 0 … 2"
    assert "give data.evaluation.class_map that the model was trained with" in error.fix


def test_training_and_evaluation_must_have_the_same_class_folders(tmp_path: Path) -> None:
    sets = {
        "data.evaluation": folder(tmp_path / "val", ("ant", "bee", "cat")),
        "data.training": folder(tmp_path / "train", ("ant", "bee", "dog")),
    }
    with pytest.raises(InputError, match=r"differ from those of data.evaluation \(cat, dog\)") as error:
        check_labels(model(3), (3,), sets)
    assert error.value.where == "data.training"
    sets["data.training"] = folder(tmp_path / "same", ("ant", "bee", "cat"))
    assert check_labels(model(3), (3,), sets) == []


def test_images_without_classes_one_output_and_features_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, ("ant",))
    flat = Folder(Folder.Config(source="folder", path=str(tmp_path / "ant"))).open(0)
    assert "so they have no labels" in refusal(3, flat).what
    assert "the model has one output for each example" in refusal(1, Examples([0, 0])).what
    headless = refusal(8, Examples([0]), num_classes=0)
    assert "no classifier (num_classes 0): its 8 outputs are features" in headless.what
    assert headless.fix.startswith("set its task to features")


def test_features_need_no_labels_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    encoder = model(8)
    encoder.own_task = TASKS["features"]
    folder(tmp_path, ("ant",))
    flat = Folder(Folder.Config(source="folder", path=str(tmp_path / "ant"))).open(0)
    (note,) = check_labels(encoder, (8,), {"data.evaluation": flat})
    assert note == (
        "data.evaluation: no example has a label, so features are judged by cosine and SQNR, without a top-1"
    )
    assert check_labels(encoder, (8,), {"data.evaluation": Examples([0, 99])}) == []
    with pytest.raises(InputError, match="features are judged by classes, and the labels are answers"):
        check_labels(encoder, (8,), {"data.evaluation": Examples([(0, 1)])})


def test_classes_of_any_source_are_compared() -> None:
    classes = Classes({"cat": 0, "dog": 1}, "column 'label'")
    error = refusal(10, Examples([0, 1], classes))
    assert "2 classes, cat … dog, and the model has 10 outputs: labels by column 'label'" in error.what
    assert error.fix == "give a model with 2 outputs, or data with the model's classes"


def test_a_source_that_raises_is_named() -> None:
    examples = Unlabelled("train", 2, 0)
    with pytest.raises(PluginError, match=r"label\(0\) of Unlabelled raised RuntimeError: there are no labels"):
        checked(3, examples)


def test_slow_labels_are_checked_in_part_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", -1.0)
    (warning,) = check(3, [0, 1, 2])
    assert warning.startswith("data.evaluation: 1 of 3 labels were checked before the run")


def test_labels_of_other_tasks_are_not_classes() -> None:
    answers = model(3)
    answers.task_name = "question_answering"
    examples = Examples([(0, 99), (5, 7)])
    assert check_labels(answers, (2, 12), {"data.evaluation": examples}) == []
    with pytest.raises(InputError, match="the model predicts answers to questions, and the labels are classes"):
        check_labels(answers, (2, 12), {"data.evaluation": Examples([1])})


# through the run


class Unlabelled(ToyImages):
    def __getitem__(self, index: int) -> Any:
        return Image.fromarray(self._pixels[index]), None

    def label(self, index: int) -> int:
        raise RuntimeError("there are no labels")


def registry(images: type[ToyImages] = ToyImages, labels: Sequence[int] = ()) -> Any:
    class Source(ToyData):
        def open(self, seed: int) -> ToyImages:
            if labels and self.config.split == "test":
                return Examples(labels)
            return (images if self.config.split == "train" else ToyImages)(self.config.split, 4, seed)

    found = toy_registry(MinMax)
    found.datasets = {**found.datasets, "toy": Source}
    return found


def test_calibration_reads_no_label(tmp_path: Path) -> None:
    found = registry(Unlabelled)
    result = qplug.run(toy_recipe(MinMax, registry=found), out=tmp_path / "run", registry=found)
    assert result.metrics["images.calibration"] == 4
    assert (tmp_path / "run" / "lock.json").is_file()


def test_a_run_refuses_labels_before_it_calibrates() -> None:
    found, stages = registry(labels=[0, 99]), []

    class Watch:
        @qplug.hookimpl
        def qplug_observe(self, event: Any) -> None:
            stages.append(event.stage)

    with pytest.raises(InputError, match=r"example toy/test/1 has label 99"):
        qplug.run(toy_recipe(MinMax, registry=found), registry=found, observers=[Watch()])
    assert set(stages) == {"load"}


def test_a_float_model_at_chance_is_an_alarm() -> None:
    found = registry(labels=[0, 1, 2, 3] * 5)
    result = qplug.run(toy_recipe(MinMax, registry=found), registry=found)
    (alarm,) = [warning for warning in result.warnings if isinstance(warning, Alarm)]
    assert re.match(r"the float model is no better than chance: top-1 [\d.]+% of 20 examples, [\d.]+% by chance", alarm)
    assert "class_map" in alarm
    assert result.metrics["images.evaluation_labels"] == "labels 0 … 3"


def test_a_batch_without_labels_is_no_evaluation() -> None:
    found = toy_registry(MinMax)
    inputs = [torch.randn(4, *SIZE)]
    recipe = toy_recipe(MinMax, registry=found)
    with pytest.raises(InputError, match="evaluation/0: the example has no label"):
        qplug.quantize(qplug.testing.toy_vit(), inputs, recipe, evaluation=[inputs[0] + 1], registry=found)


@pytest.mark.parametrize(
    "labels", [torch.rand(4), torch.eye(4).long(), torch.arange(3), torch.tensor(1), torch.ones(4, dtype=torch.bool)]
)
def test_labels_in_memory_that_are_no_classes_are_refused(labels: torch.Tensor) -> None:
    from qplug.data.memory import TensorExamples

    with pytest.raises(InputError, match="expected 4 integer labels for 4 inputs, received"):
        TensorExamples([(torch.zeros(4, 3), labels)], "evaluation")
    assert TensorExamples([[torch.zeros(4, 3)]], "calibration")[0][1] is None
