"""Tasks: the interpretation of a model's outputs and of labels, one file and one row of ``TASK_PATHS`` each.

A task defines the losses that calibration differentiates, how labels are collected, the decoding of predictions, the
metrics, agreement with the float model, the results by example that tell two runs apart, and the distance of two
outputs. Outputs are one tensor for each batch. No code outside this package interprets them; comparisons of runs read
the metrics by name.
"""

import importlib

from qplug.core.task.base import Task
from qplug.core.task.classification import Classification
from qplug.core.task.features import Features
from qplug.core.task.question_answering import QuestionAnswering
from qplug.core.task_table import TASK_PATHS


def make_task(path: str) -> Task:
    """The task of the class ``module:Class``, which takes no arguments."""
    module, _, name = path.partition(":")
    task: Task = getattr(importlib.import_module(module), name)()
    return task


TASKS: dict[str, Task] = {name: make_task(path) for name, path in TASK_PATHS.items()}
"""Every task of qplug by its name, with its default options."""
CLASSIFICATION = TASKS["classification"]

__all__ = ["CLASSIFICATION", "TASKS", "Classification", "Features", "QuestionAnswering", "Task", "make_task"]
