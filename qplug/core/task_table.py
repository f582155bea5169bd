"""The tasks of qplug by name. Importing this module imports no task, and not torch."""

from __future__ import annotations

TASK_PATHS: dict[str, str] = {
    "classification": "qplug.core.task.classification:Classification",
    "question_answering": "qplug.core.task.question_answering:QuestionAnswering",
}
"""Name → ``module:Class``. A new task is a file in ``qplug/core/task`` and a row here; plugins have ``qplug_tasks``."""
