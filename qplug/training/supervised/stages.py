"""The two stages of a run that train, each with what its result is known by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from qplug.core.storage.hashing import fingerprint, images_digest
from qplug.core.types import Change
from qplug.models.float_model import FloatModel
from qplug.pipeline.result_cache import CacheSlot, ResultCache, source_key
from qplug.quantization.plan import Plan
from qplug.training.supervised.config import WITHOUT_INFLUENCE, Qat, Training
from qplug.training.supervised.history import History
from qplug.training.supervised.images import TrainingImages
from qplug.training.supervised.loop import Fit
from qplug.training.supervised.objective import Objective
from qplug.training.supervised.task import BY, Task, batchnorms, float_task, quantized_task, take

if TYPE_CHECKING:
    from qplug.core.component import Technique
    from qplug.core.distributed import Processes
    from qplug.core.examples import Examples
    from qplug.core.types import Advance
    from qplug.quantization.backends.base import Backend


@dataclass
class Trainer:
    """Trains what a run gives it.

    Attributes:
        source: the float model, which teaches where a recipe distils.
        teacher: its module, on the device of the run.
        examples: the training images.
        seed: the recipe's.
        processes: that share the work.
        recall: what need not be trained again, and where checkpoints are kept.
        techniques: of the recipe, which made the model what it is.
        histories: by stage, of what was trained.
        warnings: one sentence each.
    """

    source: FloatModel
    teacher: nn.Module
    examples: Examples
    seed: int
    processes: Processes
    recall: ResultCache
    techniques: Sequence[Technique]
    histories: dict[str, History] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def steps(self, settings: Training) -> int:
        """Batches that a training takes."""
        return settings.epochs * ((len(self.examples) - settings.hold_out) // settings.batch_size)

    def finetune(self, model: nn.Module, settings: Training, advance: Advance) -> Change:
        """Train the float ``model`` in place; returns what the plan says of it."""
        if self.processes.count > 1 and batchnorms(model):
            self.warnings.append(
                f"finetune: BatchNorms normalize by each process's share of a batch, one of {self.processes.count}"
            )
        return self._train(float_task(model), model, None, settings, advance, ())

    def qat(self, model: nn.Module, plan: Plan, backend: Backend, settings: Qat, advance: Advance) -> Change:
        """Train ``model`` through the quantizers of ``plan``; both become what was learned, in place."""
        task = quantized_task(model, plan, backend, settings.learn)
        return self._train(task, model, plan, settings, advance, (*self.techniques, backend))

    def _train(
        self,
        task: Task,
        model: nn.Module,
        plan: Plan | None,
        settings: Training,
        advance: Advance,
        makers: Sequence[object],
    ) -> Change:
        if self.processes.count > 1:
            example = self.source.preprocessing.example().to(next(model.parameters()).device)
            for name in task.without_gradient(example):
                task.parameters()[name].requires_grad_(False)
        images = TrainingImages(self.examples, self.source.preprocessing, settings, self.seed)
        objective = Objective(settings, self.teacher if settings.distill is not None else None)
        slot = self._slot(task.name, model, plan, settings, makers)
        fit = Fit(task, settings, images, objective, self.seed, self.processes, slot, advance)
        history = self.histories[task.name] = fit.run()
        if not slot.keeps and history.seconds > 60.0 * settings.checkpoint_minutes:
            self.warnings.append(f"{task.name} kept no checkpoints, since the run has no cache")
        if history.untouched:
            some = ", ".join(history.untouched[:3]) + (", …" if len(history.untouched) > 3 else "")
            self.warnings.append(f"{task.name} had no gradient for {len(history.untouched)} parameters: {some}")
        take(task, model, plan, task.name)
        return Change("the model", BY[task.name], False, f"{settings.optimizer}, {history.describe()}")

    def _slot(
        self, name: str, model: nn.Module, plan: Plan | None, settings: Training, makers: Sequence[object]
    ) -> CacheSlot:
        # A quantized model is what every technique and the backend made of it; a float one what its rewriters did,
        # which recall knows already, so that recipes which differ in the rest share a fine-tune.
        by = self.recall.identities(makers)
        if by is None:
            return CacheSlot(None, "training", "", None)

        def parts() -> dict[str, Any]:
            values = settings.model_dump(mode="json", exclude=set(WITHOUT_INFLUENCE))
            return {
                "stage": name,
                "settings": values,
                "model": [repr(model), fingerprint(model.state_dict())],
                "plan": plan.to_dict() if plan is not None else None,
                "images": images_digest(self.examples),
                "preprocessing": repr(self.source.preprocessing),
                "teacher": source_key(self.source) if settings.distill is not None else None,
                "processes": self.processes.count,
                "by": by,
            }

        return self.recall.slot("training", parts)
