"""The check of labels against a model's outputs, before any other work."""

from __future__ import annotations

import operator
import time
from collections.abc import Mapping, Sequence

from qplug.core.errors import InputError, PluginError, QplugError
from qplug.core.examples import Annotation, Classes, Examples, Label, classes_of, notes_of
from qplug.core.task import Features, Task
from qplug.core.text import listed
from qplug.data.class_map import IMAGENET, imagenet_synsets
from qplug.models.float_model import FloatModel

SECONDS = 20.0
"""Longest check of one data set. A source whose labels cost more is checked further while its examples are used."""


def check_labels(model: FloatModel, shape: Sequence[int], sets: Mapping[str, Examples | None]) -> list[str]:
    """Compare the labels of each data set with the model's outputs; returns warnings, one sentence each.

    Args:
        model: the float model.
        shape: of its outputs for one example, as ``check_model`` returns it.
        sets: data sets by their name, such as ``data.evaluation``, whose labels are used.

    Raises:
        InputError: an example has no label, or one that the model has no output for; or a data set has another number
            of classes than the model has outputs, and no class map.
    """
    warnings: list[str] = []
    for name, examples in sets.items():
        if examples is not None and model.task.missing is not None and (note := _unlabelled(examples, name)):
            warnings += [*notes_of(examples), note]
        elif examples is not None:
            _check_outputs(model, shape, name)
            warnings += [*notes_of(examples), *_check_classes(model.task, shape, examples, name)]
            warnings += _check_each(model.task, shape, examples, name)
    _check_same({name: examples for name, examples in sets.items() if examples is not None})
    return warnings


def _check_outputs(model: FloatModel, shape: Sequence[int], name: str) -> None:
    """Refuse outputs of which none is that of a class."""
    count = model.task.classes(shape)
    if count == 1:
        raise InputError(
            "the model has one output for each example, and a classification needs one output for each class",
            where=name,
            fix="let a model of two classes return torch.cat([-z, z], dim=1) for its output z of shape (B, 1)",
        )
    if count is not None and getattr(model.module, "num_classes", None) == 0 and not isinstance(model.task, Features):
        what = f"the model has no classifier (num_classes 0): its {count:,} outputs are features"
        fix = "set its task to features (model.task of source: import), or give a model with one output for each class"
        raise InputError(what, where=name, fix=fix)


def _unlabelled(examples: Examples, name: str) -> str:
    """What examples without labels mean for a task that needs none; empty if each has one."""
    without = 0
    for index in range(len(examples)):
        try:
            examples.label(index)
        except InputError:
            without += 1
    if not without:
        return ""
    count = "no example has a label" if without == len(examples) else f"{without} of {len(examples)} have no label"
    return f"{name}: {count}, so features are judged by cosine and SQNR, without a top-1"


def _check_classes(task: Task, shape: Sequence[int], examples: Examples, name: str) -> list[str]:
    classes, count = classes_of(examples), task.classes(shape)
    if classes is None or count is None:
        return []
    last, label = max(classes.labels.items(), key=lambda item: item[1])
    if not classes.complete and label >= count:  # refused though no such image may be there: the others are shifted too
        raise InputError(
            f"the {classes.by} gives class {last} the label {label}, and the model has outputs 0 … {count - 1}",
            where=name,
            fix=_label_fix(examples, name),
        )
    if len(classes.labels) == count:
        return list(classes.notes)
    if classes.complete:
        raise InputError(
            f"the data has {classes}, and the model has {count:,} outputs: labels by {classes.by} would not be the "
            "model's classes",
            where=f"{name}, {classes.folder}" if classes.folder else name,
            fix=_fix(classes, count, name),
        )
    more = [f"{name}: the {classes.by} lists {len(classes.labels):,} classes, and the model has {count:,} outputs"]
    return [*classes.notes, *more]


def _check_same(sets: Mapping[str, Examples]) -> None:
    """Refuse data sets whose labels follow the names of folders that differ: one label would be two classes."""
    found = {name: classes_of(examples) for name, examples in sets.items()}
    by_name = {name: list(one.labels) for name, one in found.items() if one is not None and one.complete and one.folder}
    for name, names in by_name.items():
        other, expected = next(iter(by_name.items()))
        if names != expected:
            odd = sorted(set(names) ^ set(expected))
            raise InputError(
                f"the class folders differ from those of {other} ({listed(odd)}), so the labels are not the same",
                where=name,
                fix="give both a class_map: a text file with one class folder a line, in the order of the outputs",
            )


def _fix(classes: Classes, count: int, name: str) -> str:
    """What to set where the number of classes is not the number of outputs."""
    fitting = [path for path, inner in classes.inner.items() if inner == count]
    if fitting:
        path = next((path for path in fitting if path.name.startswith("val")), fitting[0])
        return f"set {name}.path to {path}, which has {count} class folders"
    other = f"a model with {len(classes.labels):,} outputs"
    if not classes.option:
        return f"give {other}, or data with the model's classes"
    if count == len(imagenet_synsets()) and set(imagenet_synsets()).issuperset(classes.labels):
        return f"set {name}.{classes.option}: {IMAGENET}, since the folders have names of ImageNet-1k"
    key = f"{name}.{classes.option}"
    return (
        f"set {key} to a text file that lists the {count:,} classes of the model, one folder name a line in the order "
        f"of its outputs; or give {other}"
    )


def _check_each(task: Task, shape: Sequence[int], examples: Examples, name: str) -> list[str]:
    """Check every label, as long as this takes less than ``SECONDS``."""
    start, count = time.monotonic(), task.classes(shape)
    for index in range(len(examples)):
        label = _label(examples, index, name)
        parts = label if isinstance(label, tuple) else (label,)
        if not isinstance(label, Annotation) and not all(_is_whole(part) for part in parts):
            what = f"a label must be an integer, or a pair of them for an answer, received {label!r}"
            raise InputError(what, where=f"{name}, {examples.key(index)}", fix="correct the data source")
        if what := task.mismatch(label, shape):
            where = f"{name}, {examples.key(index)}" if isinstance(label, Annotation) else name
            raise InputError(what, where=where, fix=task.label_fix)
        if count is not None and isinstance(parts[0], int) and not 0 <= parts[0] < count:
            raise InputError(
                f"{_named(examples, label)} has label {label}, and the model has outputs 0 … {count - 1}",
                where=name,
                fix=_label_fix(examples, name),
            )
        if time.monotonic() - start > SECONDS and index + 1 < len(examples):
            return [
                f"{name}: {index + 1:,} of {len(examples):,} labels were checked before the run; the others are "
                "checked when their examples are used"
            ]
    return []


def _label(examples: Examples, index: int, name: str) -> Label:
    try:
        return examples.label(index)
    except QplugError:
        raise
    except Exception as error:  # the code of a plugin
        raise PluginError(
            f"label({index}) of {type(examples).__name__} raised {type(error).__name__}: {error}",
            where=name,
            fix="raise qplug.InputError where an example has no label; calibration reads none",
        ) from error


def _is_whole(part: object) -> bool:
    try:
        operator.index(part)  # type: ignore[arg-type]  # what has no index is what is asked
    except TypeError:
        return False
    return not isinstance(part, bool)


def _named(examples: Examples, label: object) -> str:
    """The class of a label, or the first example that has it."""
    classes = classes_of(examples)
    names = [name for name, value in classes.labels.items() if value == label] if classes is not None else []
    if names and classes is not None:
        return f"class {names[0]} ({classes.by})"
    index = next(i for i in range(len(examples)) if examples.label(i) == label)
    return f"example {examples.key(index)}"


def _label_fix(examples: Examples, name: str) -> str:
    classes = classes_of(examples)
    if classes is not None and classes.option:
        return f"give {name}.{classes.option} that the model was trained with, or another model"
    return "give the labels that the model was trained with (class_map, label_column), or another model"
