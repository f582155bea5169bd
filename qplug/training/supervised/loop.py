"""The loop: one step after the other, alike whether it was stopped in between, and whoever shares its batches."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qplug.core.distributed import Processes
from qplug.core.errors import QplugError
from qplug.core.seeding import seeded
from qplug.training.supervised.accelerator import accelerator_of
from qplug.training.supervised.checkpoint import optimizer_state, pack, restore_optimizer, unpack
from qplug.training.supervised.config import Training
from qplug.training.supervised.divergence import Watch
from qplug.training.supervised.history import History
from qplug.training.supervised.images import TrainingImages
from qplug.training.supervised.objective import TrainingObjective
from qplug.training.supervised.optimize import Average, optimizer_of, rate_factor
from qplug.training.supervised.problem import Task

if TYPE_CHECKING:
    from qplug.core.storage.cache import CacheSlot
    from qplug.core.types import Advance


@dataclass
class SupervisedTraining:
    """One training, from its first step or from the last checkpoint.

    Attributes:
        task: what is trained.
        settings: how.
        images: what it sees.
        objective: what it minimizes.
        seed: the recipe's.
        processes: that share every batch.
        slot: where checkpoints are kept, and may lie.
        advance: called with the steps done and a note.
    """

    task: Task
    settings: Training
    images: TrainingImages
    objective: TrainingObjective
    seed: int
    processes: Processes
    slot: CacheSlot
    advance: Advance

    def __post_init__(self) -> None:
        settings, task = self.settings, self.task
        self.device = next(iter(task.weights.values())).device
        steps, images = settings.epochs * self.images.steps, len(self.images)
        self.history = History(task.name, settings.epochs, steps, images, self.processes.count)
        self.average = Average(task.parameters(), settings.ema) if settings.ema is not None else None
        self._accelerator = accelerator_of(settings.precision, self.device)
        made = optimizer_of(settings, task.weights, task.bounds, task.scales)
        self._optimizer = self._accelerator.prepare_optimizer(made, device_placement=False)
        learn_rate = getattr(getattr(settings, "learn", None), "rate", 1.0)
        scales = {id(parameter) for parameter in task.scales.values()}
        self._rates = [
            settings.learning_rate * (learn_rate if id(group["params"][0]) in scales else 1.0)
            for group in made.param_groups
        ]
        self._watch = Watch(task, settings.divergence, max(1, min(10, steps // 2)))

    def run(self) -> History:
        """Train to the end, or find that it was done.

        Raises:
            QplugError: it diverged; processes found checkpoints of different steps.
            InputError: labels that the model has no classes for.
        """
        first, history = self._resume(), self.history
        if first == history.steps:
            return history
        self._agree(first)
        model: Any = self._accelerator.prepare_model(self.task.model, device_placement=False)
        parts = self.images.parts(first, self.processes)
        start, kept = time.perf_counter() - history.seconds, time.perf_counter()
        if not first:
            self._hold_out(0)
        with seeded(self.seed, self.task.name):
            for step in range(first, history.steps):
                self.task.train()
                self._step(model, parts, step)
                if (step + 1) % self.images.steps == 0:
                    self._hold_out(step + 1)
                history.seconds = time.perf_counter() - start
                if time.perf_counter() - kept >= 60.0 * self.settings.checkpoint_minutes:
                    self._keep(step + 1)
                    kept = time.perf_counter()
                self.advance(step + 1, f"loss {history.loss[-1]:.3f}")
        if self.average is not None:
            self.average.swap()
        self.task.model.eval()
        self._keep(history.steps)
        return history

    def _step(self, model: Any, parts: Iterator[tuple[Tensor, Tensor]], step: int) -> None:
        """One batch: its parts, the gradient of the mean over all of them, one step of the optimizer."""
        settings, history = self.settings, self.history
        factor = rate_factor((step + 1) / (history.steps + 1), settings.warmup, settings.schedule)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        sums, classes = torch.zeros(2, dtype=torch.float64, device=self.device), 0
        for part in range(settings.accumulate):
            inputs, labels = next(parts)
            inputs = inputs.to(self.device)
            with self._alone(model, part), torch.enable_grad():
                self._draw(step, part)
                outputs = model(inputs)
                classes = outputs.shape[-1]
                self.objective.task.check_labels(labels, outputs, "data.training")
                loss, right = self.objective(outputs, labels.to(self.device), inputs)
                sums += torch.stack([loss.detach().double(), right.double()])
                self._accelerator.backward(loss * (self.processes.count / settings.batch_size))
        total, right_ones = (self._sum(sums) / settings.batch_size).tolist()
        history.loss.append(total)
        history.top1.append(right_ones)
        if problem := self._watch.problem(history.loss, classes):
            raise self._watch.error(problem, step, history.steps, self._rates[0] * factor, inputs)
        if settings.clip is not None:
            self._accelerator.unscale_gradients(self._optimizer)
            for group in (self.task.weights, self.task.scales):
                torch.nn.utils.clip_grad_norm_(group.values(), settings.clip)
        history.untouched = [name for name, p in self.task.parameters().items() if p.grad is None]
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self.average is not None:
            self.average.update(step + 1)

    def _alone(self, model: Any, part: int) -> Any:
        """Gradients travel between processes with the last part alone."""
        return nullcontext() if part == self.settings.accumulate - 1 else self._accelerator.no_sync(model)

    def _draw(self, step: int, part: int) -> None:
        """Let what the model draws depend on the step, not on what was drawn before."""
        seed = zlib.crc32(f"{self.seed}:{self.task.name}:{step}:{part}:{self.processes.index}".encode())
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _sum(self, tensor: Tensor) -> Tensor:
        summed: Tensor = self._accelerator.reduce(tensor, "sum")
        return summed

    @torch.no_grad()
    def _hold_out(self, step: int) -> None:
        """Top-1 on the images that are not trained on, of the moving average where there is one."""
        if not self.images.held_out:
            return
        with self._averaged():
            self.task.model.eval()
            right, task = 0, self.objective.task
            for inputs, labels in self.images.held_out_batches():
                outputs = self.task.model(inputs.to(self.device)).cpu()
                right += int((task.predictions(outputs) == task.truth(labels, outputs)).sum())
        self.history.held_out.append((step, right / len(self.images.held_out)))

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        if self.average is not None:
            self.average.swap()
        try:
            yield
        finally:
            if self.average is not None:
                self.average.swap()

    def _agree(self, first: int) -> None:
        steps = self._accelerator.gather(torch.tensor([first], device=self.device)).tolist()
        if len(set(steps)) > 1:
            raise QplugError(
                f"the processes would go on at steps {steps}: not all of them see the same checkpoints",
                where=self.task.name,
                fix="let all of them share one cache folder (--cache), or do without one (--no-cache)",
            )

    def _groups(self) -> dict[str, Mapping[str, Tensor]]:
        groups: dict[str, Mapping[str, Tensor]] = {"parameter": self.task.parameters(), "buffer": self.task.buffers()}
        return groups if self.average is None else {**groups, "average": self.average.tensors}

    def _keep(self, step: int) -> None:
        """Keep everything that the rest depends on; of a training that is done, only what it gave."""
        if not self.processes.is_main:
            return
        history, done = self.history, step == self.history.steps
        tensors = pack({key: group for key, group in self._groups().items() if not done or key != "average"})
        about: dict[str, Any] = {"step": step, "held_out": history.held_out}
        if not done:
            more, about["optimizer"] = optimizer_state(self._optimizer.optimizer)
            tensors |= more
            scaler = self._accelerator.scaler
            about["scaler"] = scaler.state_dict() if scaler is not None else None
        tensors["history"] = torch.tensor([history.loss, history.top1], dtype=torch.float64)
        self.slot.keep(tensors, history.seconds, about)

    def _resume(self) -> int:
        """Take up the checkpoint, if there is one; returns the steps that are done."""
        tensors, about = self.slot.tensors, self.slot.about
        if tensors is None:
            return 0
        step, history = int(about["step"]), self.history
        done = step == history.steps
        unpack(tensors, {key: group for key, group in self._groups().items() if not done or key != "average"})
        history.loss, history.top1 = tensors["history"].tolist()
        history.held_out = [(int(at), float(top1)) for at, top1 in about["held_out"]]
        history.seconds = float(about["seconds"])
        if not done:
            restore_optimizer(self._optimizer.optimizer, tensors, about["optimizer"])
            if self._accelerator.scaler is not None:
                self._accelerator.scaler.load_state_dict(about["scaler"])
        return step
