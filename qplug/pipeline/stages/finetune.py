"""Fine-tune the float model after its rewrites."""

from __future__ import annotations

import copy

from qplug.pipeline.context import RunContext
from qplug.pipeline.results import Inputs, RewrittenModel
from qplug.pipeline.trainer import Trainer
from qplug.pipeline.warnings import ask_for_training
from qplug.training.supervised.config import FineTune


def finetune(ctx: RunContext, inputs: Inputs, model: RewrittenModel, settings: FineTune | None) -> None:
    """Train every parameter of the model in place; without settings, warn of rewrites that need training."""
    if settings is None:
        ctx.warnings += ask_for_training(model.changes)
        return
    trainer = Trainer(ctx, inputs)
    with ctx.stage("finetune", trainer.steps(settings)) as advance:
        change, model.trainings["finetune"] = trainer.finetune(model.module, settings, advance)
        model.changes.append(change)
        if model.equivalence is not None:
            model.equivalence.reset()
    model.finetuned = copy.deepcopy(model.module)
