"""Sequential block reconstruction: each block is trained on the outputs of the already quantized blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from qplug.core.device import fits
from qplug.core.errors import PluginError
from qplug.core.seeding import seeded
from qplug.core.task import CLASSIFICATION, Task
from qplug.core.text import listed
from qplug.core.types import SiteKind
from qplug.models.surgery import put
from qplug.quantization.backends.base import Backend
from qplug.quantization.plan import Decision, Plan
from qplug.quantization.quantizers import Quantizer
from qplug.training.learners import Learner
from qplug.training.reconstruction.blocks import block_contains, find_blocks, lower_block, modules_in_call_order
from qplug.training.reconstruction.capture import Calls
from qplug.training.reconstruction.config import Block, Reconstruction
from qplug.training.reconstruction.forwards import Forwards
from qplug.training.reconstruction.iteration import QDropQuantizer
from qplug.training.reconstruction.loop import learn
from qplug.training.reconstruction.losses import LOSSES, OutputLoss, Unit

Blame = Callable[[str], AbstractContextManager[None]]
"""Site, block or operation → a context in which an error names the technique that is at fault."""
DECIDED_DISTANCE = 0.05
"""Largest distance of a decided soft bit from 0 or from 1."""
UNDECIDED_LIMIT = 0.05
"""Share of a block's bits that may be undecided at the end without a warning."""


@dataclass
class Reconstructor:
    """Trains the blocks in the order of execution, each on the outputs of the already quantized blocks.

    Attributes:
        backend: lowers blocks.
        model: the float model, smoothed; reconstruction writes the learned weights into it.
        plan: reconstruction writes the learned quantizers and the reasons into it.
        batches: the calibration images, (B, C, H, W) each, on the model's device.
        loss: the recipe's ``calibration.loss``, for losses that weight errors by its gradients.
        seed: the recipe's seed.
        classes: ``module:Class`` of each block class.
        task: the task of the model.
        undecided: block or operation → the share of its bits that were still soft before rounding.
        undone: block or operation whose error did not fall, so that it stays unchanged → the technique.
    """

    backend: Backend
    model: nn.Module
    plan: Plan
    batches: Sequence[Tensor]
    loss: str
    seed: int
    classes: Sequence[str]
    task: Task = CLASSIFICATION
    undecided: dict[str, float] = field(default_factory=dict)
    undone: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._floats = Forwards(copy.deepcopy(self.model), self.batches)
        self._quantized = Forwards(self.backend.apply(copy.deepcopy(self.model), self.plan), self.batches)

    @property
    def device(self) -> torch.device:
        """The device of the images and the model."""
        return self.batches[0].device

    def blocks(self) -> list[str]:
        """The paths of all blocks, in the order of execution."""
        return find_blocks(self.model, self.plan.modules(), self.batches[0][:1], self.classes)

    def block(self, name: str) -> Block:
        """The block ``name`` as an argument of the hook."""
        decisions = self.decisions(name)
        return Block(name, decisions, {d.site.name: self._weight(d) for d in decisions if d.site.kind.is_weight})

    def decisions(self, name: str) -> list[Decision]:
        """The decisions of a block or operation."""
        return [d for d in self.plan if block_contains(name, d.site.module)]

    def learn(self, name: str, by: str, settings: Reconstruction, blame: Blame) -> None:
        """Train all units of a block: the block itself, or each of its operations.

        Args:
            name: path of the block.
            by: the technique that chose ``settings``; part of seeds and reasons.
            settings: learners, rates and schedule.
            blame: unit → a context in which an error names the technique.
        """
        floats, quantized = self._floats, self._quantized
        units = self._units(name, settings)
        if units != [name]:
            floats = floats.replay_block(name)
            with self.backend.inference(quantized.model):
                quantized = quantized.replay_block(name)
        for unit in units:
            self._learn_unit(unit, by, settings, blame, floats, quantized)

    def finish(self, name: str) -> None:
        """Put the block into the quantized model, which computes the inputs of the following blocks."""
        put(self._quantized.model, name, lower_block(self.backend, self.model, name, self.plan))

    def state(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state of a learned block: its weights, and its quantizers and reasons as JSON values."""
        decisions = self.decisions(name)
        weights = {d.site.name: self._weight(d).cpu() for d in decisions if d.site.kind.is_weight}
        about = {d.site.name: [d.quantizer.to_dict(), d.reason, d.undone] for d in decisions}
        undecided = {unit: share for unit, share in self.undecided.items() if block_contains(name, unit)}
        undone = {unit: by for unit, by in self.undone.items() if block_contains(name, unit)}
        return weights, {"decisions": about, "undecided": undecided, "undone": undone}

    def restore(
        self, weights: Mapping[str, Tensor], about: Mapping[str, Any], quantizer_of: Callable[[Any], Quantizer]
    ) -> None:
        """Restore a block from the values of ``state``."""
        self.undecided |= about["undecided"]
        self.undone |= about["undone"]
        for name, (quantizer, reason, undone) in about["decisions"].items():
            decision = self.plan.decisions[name]
            if name in weights:
                self._weight(decision).copy_(weights[name])
            restored = quantizer_of(quantizer).to(self.device)
            self.plan.decisions[name] = replace(decision, quantizer=restored, reason=reason, undone=undone)

    def warnings(self) -> list[str]:
        """A warning for units that stay unchanged, and one for units with too many undecided bits."""
        found = []
        for by in dict.fromkeys(self.undone.values()):
            units = [unit for unit, technique in self.undone.items() if technique == by]
            found.append(
                f"{by} changed nothing in {len(units)} of {len(self.undecided)} reconstructions, since their error did "
                f"not fall: {listed(units)}"
            )
        undecided = {unit: share for unit, share in self.undecided.items() if share > UNDECIDED_LIMIT}
        if not undecided:
            return found
        worst = max(undecided, key=lambda unit: undecided[unit])
        return [
            *found,
            f"in {len(undecided)} of {len(self.undecided)} reconstructions more than {UNDECIDED_LIMIT:.0%} of the bits "
            f"were still soft before rounding, {undecided[worst]:.1%} in {worst}; rounding such bits may raise the "
            "error again: raise weight, the weight of the penalty, or iterations",
        ]

    def _weight(self, decision: Decision) -> Tensor:
        weight = self.model.get_submodule(decision.site.module).weight
        assert isinstance(weight, Tensor)
        return weight.detach()

    def _units(self, name: str, settings: Reconstruction) -> list[str]:
        """The block itself, or its operations that have a learner, in the order of execution."""
        if not settings.each_operation:
            return [name]
        operations = dict.fromkeys(d.site.module for d in self.decisions(name) if d.site.name in settings.learners)
        return modules_in_call_order(self.model, operations, self.batches[0][:1])

    def _learn_unit(
        self, unit: str, by: str, settings: Reconstruction, blame: Blame, floats: Forwards, quantized: Forwards
    ) -> None:
        """Train one unit, and write the result into the model, the plan and the quantized model.

        If the unit's error did not fall, its weights and quantizers stay unchanged.
        """
        decisions = self.decisions(unit)
        learners = {d.site.name: settings.learners[d.site.name] for d in decisions if d.site.name in settings.learners}
        if not learners:
            return
        calls, inputs, loss = self._observe(unit, by, settings, blame, floats, quantized)
        before = self._error(unit, calls, inputs, loss)
        start = {d.site.name: (d, self._weight(d).clone() if d.site.kind.is_weight else None) for d in decisions}
        unit_settings = replace(settings, learners=learners)
        block = lower_block(self.backend, self.model, unit, _with_learners(self.plan, decisions, unit_settings))
        with seeded(self.seed, by, unit), blame(unit):
            learn(block.to(self.device), unit_settings, calls, inputs, loss)
        self.undecided[unit] = undecided = _undecided(learners.values())
        for decision in decisions:
            if decision.site.name in learners:
                with blame(decision.site.name):
                    self._apply_learned(decision, learners[decision.site.name])
        after = self._error(unit, calls, inputs, loss)
        note = f"{by}: error of {unit} {before:.4g} → {after:.4g}"
        note += f", {undecided:.1%} of the bits still soft" if undecided else ""
        if not after <= before:
            note += ", so the unit stays unchanged"
            self.undone[unit] = by
            for decision, weight in start.values():
                self.plan.decisions[decision.site.name] = decision
                if weight is not None:
                    self._weight(decision).copy_(weight)
        for decision in decisions:
            current = self.plan.decisions[decision.site.name]
            undone = by if unit in self.undone and decision.site.name in learners else ""
            reason = f"{current.reason}; {note}"
            self.plan.decisions[decision.site.name] = replace(current, reason=reason, undone=undone)
        put(quantized.model, unit, lower_block(self.backend, self.model, unit, self.plan))

    def _observe(
        self, unit: str, by: str, settings: Reconstruction, blame: Blame, floats: Forwards, quantized: Forwards
    ) -> tuple[Calls, Tensor, OutputLoss]:
        """The calls of the float unit, the inputs of the quantized unit, and the prepared loss.

        They are on the model's device if its memory suffices, and on the CPU otherwise.
        """
        calls = floats.capture(unit)
        with self.backend.inference(quantized.executed):
            inputs = quantized.capture(unit).inputs
        axis = _channel_axis(calls, [d for d in self.decisions(unit) if d.site.kind.is_weight])
        loss = LOSSES[settings.loss]() if isinstance(settings.loss, str) else settings.loss
        block = lower_block(self.backend, self.model, unit, self.plan)
        with (
            blame(unit),
            self.backend.inference(block),
            seeded(self.seed, by, unit, "loss"),
        ):
            loss.prepare(
                Unit(unit, floats.model, block, self.batches, axis, self.loss, self.seed, self.task, calls.constant)
            )
        needed = 2 * calls.bytes + sum(buffer.numel() * buffer.element_size() for buffer in loss.buffers())
        if fits(needed, self.device):
            return calls.to(self.device), inputs.to(self.device), loss.to(self.device)
        return calls, inputs, loss

    def _apply_learned(self, decision: Decision, learner: Learner) -> None:
        """Write the learner's weight into the model, and its quantizer into the plan."""
        quantizer, values = learner.harden()
        if values is not None:
            weight = self._weight(decision)
            weight.copy_(values.to(weight))
            if not torch.equal(quantizer.to(weight.device).infer(weight), weight):
                raise PluginError(
                    f"harden() of a {type(learner).__name__} returned weights that are not on the grid of its quantizer"
                )
        self.plan.decisions[decision.site.name] = replace(decision, quantizer=quantizer)

    @torch.no_grad()
    def _error(self, unit: str, calls: Calls, inputs: Tensor, loss: OutputLoss) -> float:
        """The error of the unit on all images, with the present plan and weights."""
        block, total = lower_block(self.backend, self.model, unit, self.plan), 0.0
        with self.backend.inference(block):
            entries = torch.arange(len(inputs), device=inputs.device)
            for images in torch.split(entries, len(self.batches[0]) * calls.entries):
                args, kwargs = calls.arguments(inputs[images].to(self.device), images)
                difference = block(*args, **kwargs) - calls.outputs[images].to(self.device)
                total += float(loss(difference, images)) * len(images) / len(inputs)
        return total


def _with_learners(plan: Plan, decisions: Sequence[Decision], settings: Reconstruction) -> Plan:
    """The plan with learners instead of quantizers, and with QDrop on activations if ``settings.keep`` is below 1."""
    changed = dict(plan.decisions)
    for decision in decisions:
        quantizer: Quantizer = settings.learners.get(decision.site.name, decision.quantizer)
        if settings.keep < 1.0 and not decision.site.kind.is_weight:
            quantizer = QDropQuantizer(quantizer, settings.keep)
        changed[decision.site.name] = replace(decision, quantizer=quantizer)
    return Plan(changed)


def _channel_axis(calls: Calls, weights: Sequence[Decision]) -> int:
    """The axis of the output's channels: 1 for the layout of a convolution, −1 otherwise; 2 behind a constant's entry.

    The last weight has the number of channels.
    """
    outputs = calls.outputs[0] if calls.constant else calls.outputs
    if outputs.dim() != 4 or not weights:
        return -1
    channels = [axis for axis in (1, -1) if outputs.shape[axis] == weights[-1].site.shape[0]]
    axis = channels[0] if len(channels) == 1 else 1 if weights[-1].site.kind is SiteKind.CONV_WEIGHT else -1
    return axis + 1 if calls.constant and axis == 1 else axis


def _undecided(learners: Iterable[Learner]) -> float:
    """The share of soft bits farther than ``DECIDED_DISTANCE`` from 0 and from 1; 0 without soft bits."""
    with torch.no_grad():
        soft = [bits.flatten() for bits in (learner.soft_bits() for learner in learners) if bits is not None]
    if not soft:
        return 0.0
    bits = torch.cat(soft)
    return float(((bits > DECIDED_DISTANCE) & (bits < 1.0 - DECIDED_DISTANCE)).double().mean())
