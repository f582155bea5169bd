"""The task of an evaluation: settled by its labels, with a bank of labelled features where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from qplug.core.examples import Examples, Labels
from qplug.core.task import Task
from qplug.core.task.features import ClassifiedFeatures, vectors
from qplug.core.task.nearest import Bank
from qplug.data.loading import batches
from qplug.pipeline.context import RunContext
from qplug.pipeline.results import Inputs


def settled_task(ctx: RunContext, inputs: Inputs, quantized: nn.Module, labels: Labels) -> Task:
    """The task of the float model for these evaluation labels.

    Features with classes are judged by the nearest neighbours among the training data, if there is some: the bank.
    Each model computes its own features of the bank. What is read is added to the warnings of the run.
    """
    source = inputs.float_model
    task = source.task.settled(labels)
    if not isinstance(task, ClassifiedFeatures):
        if inputs.training is not None and task.missing is not None:
            ctx.warnings.append("data.training was not read: without evaluation labels, features need no bank")
        return task
    bank = inputs.training
    if bank is not None and task.classes_by is not None:
        ctx.warnings.append("data.training was not read: the class embeddings give the classes")
    elif bank is not None:
        both = _banks([source.module, quantized], inputs, bank, ctx)
        task = replace(task, float_bank=both[0], quantized_bank=both[1])
        ctx.warnings.append(_shared(inputs.images.examples, bank))
    ctx.warnings.append(f"top-1 of features: {task.by}")
    return task


def _banks(models: Sequence[nn.Module], inputs: Inputs, bank: Examples, ctx: RunContext) -> list[Bank]:
    """The vectors of every bank example by each model; maps and tokens are reduced batch by batch."""
    transform = inputs.float_model.preprocessing.transform()
    rows: list[list[Tensor]] = [[] for _ in models]
    found: list[Tensor] = []
    with torch.no_grad():
        for images, labels in batches(bank, transform, inputs.batch_size, ctx.device, inputs.float_model.task.collect):
            for row, model in zip(rows, models, strict=True):
                row.append(vectors(model(images).float()).cpu())
            found.append(labels.cpu())
    return [Bank(torch.cat(row), torch.cat(found)) for row in rows]


def _shared(calibration: Examples, bank: Examples) -> str:
    """What the bank and the calibration data have in common."""
    own = {calibration.digest(index) for index in range(len(calibration))}
    both = sum(bank.digest(index) in own for index in range(len(bank)))
    return (
        f"data.training is the bank of nearest neighbours: {len(bank)} images with labels, of which {both} are "
        "calibration images too; calibration read no label and no other image of the bank"
    )
