"""What a model's outputs are: one file a task, one row each in ``TASKS``. Nothing else looks into outputs.

A task says which losses calibration differentiates, how predictions are decoded and judged, what agreement with the
float model means, and how far two outputs are apart.
"""

from qplug.core.task.base import Task
from qplug.core.task.classification import Classification
from qplug.core.task.question_answering import QuestionAnswering

CLASSIFICATION = Classification()
TASKS: dict[str, Task] = {task.name: task for task in (CLASSIFICATION, QuestionAnswering())}
"""Every task by its name."""

__all__ = ["CLASSIFICATION", "TASKS", "Classification", "QuestionAnswering", "Task"]
