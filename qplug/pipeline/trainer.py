"""Supervised training within a run: fine-tuning and QAT, each looked up in the cache first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from qplug.core.storage.cache import CacheSlot
from qplug.core.storage.hashing import fingerprint, images_digest
from qplug.core.text import listed
from qplug.core.types import Change
from qplug.pipeline.result_cache import source_key
from qplug.quantization.plan import Plan
from qplug.training.supervised.config import WITHOUT_INFLUENCE, Qat, Training
from qplug.training.supervised.history import History
from qplug.training.supervised.images import TrainingImages
from qplug.training.supervised.loop import SupervisedTraining
from qplug.training.supervised.objective import TrainingObjective
from qplug.training.supervised.problem import (
    TRAINED_BY,
    TrainingProblem,
    apply_trained,
    batchnorms,
    float_problem,
    quantized_problem,
)

if TYPE_CHECKING:
    from qplug.core.types import Advance
    from qplug.pipeline.context import RunContext
    from qplug.pipeline.results import Inputs


class Trainer:
    """Trains the model of a run on its training data.

    Args:
        ctx: of the run.
        inputs: the training data, and the float model, which teaches where a recipe distils.
    """

    def __init__(self, ctx: RunContext, inputs: Inputs) -> None:
        assert inputs.training is not None  # the schema refuses a recipe that trains without data.training
        self.ctx, self.inputs, self.images = ctx, inputs, inputs.training

    def steps(self, settings: Training) -> int:
        """Batches that a training takes."""
        return settings.epochs * ((len(self.images) - settings.hold_out) // settings.batch_size)

    def finetune(self, model: nn.Module, settings: Training, advance: Advance) -> tuple[Change, History]:
        """Train the float ``model`` in place; returns the plan's record of it, and its history."""
        if self.ctx.processes.count > 1 and batchnorms(model):
            self.ctx.warnings.append(
                f"finetune: BatchNorms normalize by each process's share of a batch, one of {self.ctx.processes.count}"
            )
        return self._train(float_problem(model), model, None, settings, advance, ())

    def qat(self, model: nn.Module, plan: Plan, settings: Qat, advance: Advance) -> tuple[Change, History]:
        """Train ``model`` through the quantizers of ``plan``; both become what was learned, in place."""
        backend = self.ctx.backend
        task = quantized_problem(model, plan, backend, settings.learn)
        return self._train(task, model, plan, settings, advance, (*self.ctx.caller.techniques, backend))

    def _train(
        self,
        task: TrainingProblem,
        model: nn.Module,
        plan: Plan | None,
        settings: Training,
        advance: Advance,
        makers: Sequence[object],
    ) -> tuple[Change, History]:
        if self.ctx.processes.count > 1:
            example = self.inputs.float_model.preprocessing.example().to(next(model.parameters()).device)
            for name in task.parameters_without_gradient(example):
                task.parameters()[name].requires_grad_(False)
        images = TrainingImages(self.images, self.inputs.float_model.preprocessing, settings, self.ctx.seed)
        source = self.inputs.float_model
        teacher = source.module if settings.distill is not None else None
        objective = TrainingObjective(settings, teacher, source.task)
        slot = self._slot(task.name, model, plan, settings, makers)
        fit = SupervisedTraining(task, settings, images, objective, self.ctx.seed, self.ctx.processes, slot, advance)
        history = fit.run()
        if not slot.keeps and history.seconds > 60.0 * settings.checkpoint_minutes:
            self.ctx.warnings.append(f"{task.name} kept no checkpoints, since the run has no cache")
        if history.untouched:
            some = listed(history.untouched)
            self.ctx.warnings.append(f"{task.name} had no gradient for {len(history.untouched)} parameters: {some}")
        apply_trained(task, model, plan, task.name)
        change = Change("the model", TRAINED_BY[task.name], False, f"{settings.optimizer}, {history.describe()}")
        return change, history

    def _slot(
        self, name: str, model: nn.Module, plan: Plan | None, settings: Training, makers: Sequence[object]
    ) -> CacheSlot:
        # Every technique and the backend shape a quantized model. The rewriters shape a float one, and they are part of
        # every key already: recipes that differ in the rest share a fine-tune.
        by = self.ctx.results.identities(makers)
        if by is None:
            return CacheSlot(None, "training", "", None)

        def parts() -> dict[str, Any]:
            values = settings.model_dump(mode="json", exclude=set(WITHOUT_INFLUENCE))
            return {
                "stage": name,
                "settings": values,
                "model": [repr(model), fingerprint(model.state_dict())],
                "plan": plan.to_dict() if plan is not None else None,
                "images": images_digest(self.images),
                "preprocessing": repr(self.inputs.float_model.preprocessing),
                "teacher": source_key(self.inputs.float_model) if settings.distill is not None else None,
                "processes": self.ctx.processes.count,
                "by": by,
            }

        return self.ctx.results.slot("training", parts)
