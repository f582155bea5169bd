"""Training loop; results do not depend on resumes or on the number of processes."""

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
from qplug.training.supervised.divergence import DivergenceMonitor
from qplug.training.supervised.history import History
from qplug.training.supervised.images import TrainingImages
from qplug.training.supervised.objective import TrainingObjective
from qplug.training.supervised.optimize import Average, optimizer_of, rate_factor
from qplug.training.supervised.problem import TrainingProblem

if TYPE_CHECKING:
    from qplug.core.storage.cache import CacheSlot
    from qplug.core.types import Advance


@dataclass
class SupervisedTraining:
    """One training, started at its first step or at the last checkpoint.

    Attributes:
        problem: the model and its learned parameters.
        settings: batches, optimizer, schedule and precision.
        images: the training images.
        objective: the loss.
        seed: the recipe's seed.
        processes: the processes that share every batch.
        slot: cache slot of the checkpoints.
        advance: called with the number of finished steps and a note.
    """

    problem: TrainingProblem
    settings: Training
    images: TrainingImages
    objective: TrainingObjective
    seed: int
    processes: Processes
    slot: CacheSlot
    advance: Advance

    def __post_init__(self) -> None:
        settings, problem = self.settings, self.problem
        self.device = next(iter(problem.weights.values())).device
        steps, images = settings.epochs * self.images.steps, len(self.images)
        self.history = History(problem.name, settings.epochs, steps, images, self.processes.count)
        self.average = Average(problem.parameters(), settings.ema) if settings.ema is not None else None
        self._accelerator = accelerator_of(settings.precision, self.device)
        optimizer = optimizer_of(settings, problem.weights, problem.bounds, problem.scales)
        self._optimizer = self._accelerator.prepare_optimizer(optimizer, device_placement=False)
        learn_rate = getattr(getattr(settings, "learn", None), "rate", 1.0)
        scales = {id(parameter) for parameter in problem.scales.values()}
        self._rates = [
            settings.learning_rate * (learn_rate if id(group["params"][0]) in scales else 1.0)
            for group in optimizer.param_groups
        ]
        self._monitor = DivergenceMonitor(problem, settings.divergence, max(1, min(10, steps // 2)))

    def run(self) -> History:
        """Train to the last step. A finished training is restored from its checkpoint.

        Raises:
            QplugError: the training diverged, or the processes found checkpoints of different steps.
            InputError: a label is no class of the model.
        """
        first, history = self._resume(), self.history
        if first == history.steps:
            return history
        self._check_same_step(first)
        model: Any = self._accelerator.prepare_model(self.problem.model, device_placement=False)
        parts = self.images.parts(first, self.processes)
        start, last_checkpoint = time.perf_counter() - history.seconds, time.perf_counter()
        if not first:
            self._evaluate_held_out(0)
        with seeded(self.seed, self.problem.name):
            for step in range(first, history.steps):
                self.problem.train()
                self._step(model, parts, step)
                if (step + 1) % self.images.steps == 0:
                    self._evaluate_held_out(step + 1)
                history.seconds = time.perf_counter() - start
                if time.perf_counter() - last_checkpoint >= 60.0 * self.settings.checkpoint_minutes:
                    self._save_checkpoint(step + 1)
                    last_checkpoint = time.perf_counter()
                self.advance(step + 1, f"loss {history.loss[-1]:.3f}")
        if self.average is not None:
            self.average.swap()
        self.problem.model.eval()
        self._save_checkpoint(history.steps)
        return history

    def _step(self, model: Any, parts: Iterator[tuple[Tensor, Tensor]], step: int) -> None:
        """One batch: the gradient of the mean loss over all its parts, and one step of the optimizer."""
        settings, history = self.settings, self.history
        factor = rate_factor((step + 1) / (history.steps + 1), settings.warmup, settings.schedule)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        sums, classes = torch.zeros(2, dtype=torch.float64, device=self.device), 0
        for part in range(settings.accumulate):
            inputs, labels = next(parts)
            inputs = inputs.to(self.device)
            with self._synchronize_last_part(model, part), torch.enable_grad():
                self._seed_part(step, part)
                outputs = model(inputs)
                classes = outputs.shape[-1]
                self.objective.task.check_labels(labels, outputs, "data.training")
                loss, right = self.objective(outputs, labels.to(self.device), inputs)
                sums += torch.stack([loss.detach().double(), right.double()])
                self._accelerator.backward(loss * (self.processes.count / settings.batch_size))
        mean_loss, top1 = (self._sum(sums) / settings.batch_size).tolist()
        history.loss.append(mean_loss)
        history.top1.append(top1)
        if divergence := self._monitor.diagnose(history.loss, classes):
            raise self._monitor.error(divergence, step, history.steps, self._rates[0] * factor, inputs)
        if settings.clip is not None:
            self._accelerator.unscale_gradients(self._optimizer)
            for group in (self.problem.weights, self.problem.scales):
                torch.nn.utils.clip_grad_norm_(group.values(), settings.clip)
        history.untouched = [name for name, p in self.problem.parameters().items() if p.grad is None]
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self.average is not None:
            self.average.update(step + 1)

    def _synchronize_last_part(self, model: Any, part: int) -> Any:
        """A context in which processes exchange gradients only for the last part of a batch."""
        return nullcontext() if part == self.settings.accumulate - 1 else self._accelerator.no_sync(model)

    def _seed_part(self, step: int, part: int) -> None:
        """Seed the model's random values by step and part, so that they do not depend on earlier draws."""
        seed = zlib.crc32(f"{self.seed}:{self.problem.name}:{step}:{part}:{self.processes.index}".encode())
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _sum(self, tensor: Tensor) -> Tensor:
        summed: Tensor = self._accelerator.reduce(tensor, "sum")
        return summed

    @torch.no_grad()
    def _evaluate_held_out(self, step: int) -> None:
        """Record top-1 on the held-out images, with the moving average of the parameters if there is one."""
        if not self.images.held_out:
            return
        with self._averaged():
            self.problem.model.eval()
            right, task = 0, self.objective.task
            for inputs, labels in self.images.held_out_batches():
                outputs = self.problem.model(inputs.to(self.device)).cpu()
                right += int(task.correct(outputs, labels))
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

    def _check_same_step(self, first: int) -> None:
        steps = self._accelerator.gather(torch.tensor([first], device=self.device)).tolist()
        if len(set(steps)) > 1:
            raise QplugError(
                f"all processes must resume at the same step, and they found checkpoints of steps {steps}",
                where=self.problem.name,
                fix="use one cache folder for all processes (--cache), or no cache (--no-cache)",
            )

    def _groups(self) -> dict[str, Mapping[str, Tensor]]:
        groups: dict[str, Mapping[str, Tensor]] = {
            "parameter": self.problem.parameters(),
            "buffer": self.problem.buffers(),
        }
        return groups if self.average is None else {**groups, "average": self.average.tensors}

    def _save_checkpoint(self, step: int) -> None:
        """Store the state that the remaining steps need; after the last step, store only the result."""
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
        """Load the checkpoint, if there is one; returns the number of finished steps."""
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
