"""Tasks: the interpretation of a model's outputs, one file and one row of ``TASKS`` each.

A task defines the losses that calibration differentiates, the decoding of predictions, the metrics, agreement with the
float model, and the distance of two outputs. Outputs are one tensor for each batch. No code outside this package
interprets them; comparisons of runs read the metrics by name.
"""

from qplug.core.task.base import Task
from qplug.core.task.classification import Classification
from qplug.core.task.question_answering import QuestionAnswering

CLASSIFICATION = Classification()
TASKS: dict[str, Task] = {task.name: task for task in (CLASSIFICATION, QuestionAnswering())}
"""Every task by its name."""

__all__ = ["CLASSIFICATION", "TASKS", "Classification", "QuestionAnswering", "Task"]
