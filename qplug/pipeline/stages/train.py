"""Quantization-aware training."""

from __future__ import annotations

from qplug.pipeline.context import RunContext
from qplug.pipeline.results import Inputs, RewrittenModel
from qplug.pipeline.trainer import Trainer
from qplug.quantization.plan import Plan
from qplug.training.supervised.config import Qat


def train(ctx: RunContext, inputs: Inputs, model: RewrittenModel, plan: Plan, settings: Qat | None) -> None:
    """Train the model through the quantizers of ``plan``; both become what was learned, in place."""
    if settings is None:
        return
    trainer = Trainer(ctx, inputs)
    with ctx.stage("qat", trainer.steps(settings)) as advance:
        change, model.trainings["qat"] = trainer.qat(model.module, plan, settings, advance)
        plan.changes.append(change)
