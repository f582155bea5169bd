"""The tasks of qplug by name. Importing this module imports no task, and not torch."""

from __future__ import annotations

TASK_PATHS: dict[str, str] = {
    "classification": "qplug.core.task.classification:Classification",
    "detection": "qplug.core.task.detection:Detection",
    "features": "qplug.core.task.features:Features",
    "question_answering": "qplug.core.task.question_answering:QuestionAnswering",
    "semantic_segmentation": "qplug.core.task.semantic_segmentation:SemanticSegmentation",
    "sequence_classification": "qplug.core.task.sequence_classification:SequenceClassification",
}
"""Name → ``module:Class``. A new task is a file in ``qplug/core/task`` and a row here; plugins have ``qplug_tasks``."""
