"""The contract of tasks: losses that can be differentiated, metrics in 0 … 1, and results of each example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from qplug.core.examples import Label
from qplug.core.task import Task


class TaskContract:
    """Subclass it in a plugin's tests, with a task, and some outputs and labels::

    class TestMine(TaskContract):
        task = Depth()

        def examples(self):
            return torch.rand(3, 8, 8), [DepthMap(…), DepthMap(…), DepthMap(…)]
    """

    task: ClassVar[Task]

    def examples(self) -> tuple[Tensor, Sequence[Label]]:
        """Outputs of a model for at least two examples, (N, …) float32, and a label for each, as a data source's."""
        raise NotImplementedError

    def noisy(self, outputs: Tensor) -> Tensor:
        """The outputs as a quantized model may give them; by default with 1 % of noise."""
        return outputs + 0.01 * outputs.std() * torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0))

    def given(self) -> tuple[Tensor, Tensor, Any]:
        """Outputs of the float model, outputs of the quantized model, and the labels as a run collects them."""
        outputs, labels = self.examples()
        assert len(outputs) == len(labels) >= 2, "examples() must give a label for each of at least two outputs"
        return outputs, self.noisy(outputs), self.task.collect(labels)

    def test_it_has_a_name_and_takes_its_outputs(self) -> None:
        """The outputs of a batch and of one example are accepted, with their labels."""
        task, (outputs, labels) = self.task, self.examples()
        assert isinstance(task, Task), f"expected a qplug.Task, got {type(task).__name__}"
        assert task.name.isidentifier(), f"the name {task.name!r} must consist of letters, digits and _"
        assert task.losses, f"{task.name}: losses names no loss for calibration"
        for part in (outputs, outputs[:1]):
            assert task.accepts(part), f"{task.name} does not accept outputs {tuple(part.shape)}"
        for label in labels:
            what = task.mismatch(label, tuple(outputs.shape[1:]))
            assert not what, f"{task.name} refuses a label of its own: {what}"
        task.check_labels(task.collect(labels), outputs, "the contract")

    def test_labels_of_batches_join(self) -> None:
        """Two batches of labels make the labels of all: the score is the same."""
        task, (outputs, labels) = self.task, self.examples()
        joined = task.join([task.collect(labels[:1]), task.collect(labels[1:])])
        assert len(joined) == len(labels), f"{task.name}: {len(labels)} labels become {len(joined)}"
        one, other = task.judge(outputs, joined), task.judge(outputs, task.collect(labels))
        assert one == other, f"{task.name}: the score depends on the batches, {one} and {other}"

    def test_its_losses_have_gradients(self) -> None:
        """Each loss of ``losses`` is one finite number whose gradient reaches the outputs."""
        outputs, _, _ = self.given()
        for name in self.task.losses:
            leaf = outputs.clone().requires_grad_(True)
            loss = self.task.sum_of_losses(name, leaf, 0, 0)
            assert loss.dim() == 0, f"{self.task.name}, {name}: expected one number, got {tuple(loss.shape)}"
            assert bool(loss.isfinite()), f"{self.task.name}, {name}: the loss is {loss}"
            (gradient,) = torch.autograd.grad(loss, leaf)
            assert bool(gradient.isfinite().all()), f"{self.task.name}, {name}: the gradient is not finite"
            if name != "kl_zero":
                assert bool(gradient.any()), f"{self.task.name}, {name}: the gradient is zero"

    def test_equal_outputs_have_no_distance(self) -> None:
        """Of themselves outputs differ by nothing, and of noisy ones by something."""
        task, (outputs, noisy, _) = self.task, self.given()
        assert task.relative_change(outputs, outputs) == 0.0, f"{task.name}: outputs differ from themselves"
        assert task.relative_change(outputs, noisy) > 0.0, f"{task.name}: noise changes nothing"
        assert float(task.divergence(outputs, outputs)) < 1e-4 * len(outputs), f"{task.name}: divergence from itself"
        leaf = noisy.clone().requires_grad_(True)
        distance = task.divergence(leaf, outputs, 20.0)
        (gradient,) = torch.autograd.grad(distance, leaf)
        distance = distance.detach()
        assert float(distance) > 0.0, f"{task.name}: the divergence of noisy outputs is {float(distance)}"
        assert bool(gradient.any()), f"{task.name}: the divergence has no gradient"
        signal, noise = task.energies(outputs, noisy)
        assert signal.shape == noise.shape == outputs.shape, f"{task.name}: energies have another shape than outputs"
        assert signal.dtype == noise.dtype == torch.float64, f"{task.name}: energies are no float64"

    def test_metrics_are_fractions(self) -> None:
        """Of both models, with the score among them; equal outputs agree fully."""
        task, (outputs, noisy, labels) = self.task, self.given()
        found = task.metrics(outputs, noisy, labels)
        needed = [f"float.{task.score}", f"quantized.{task.score}", "quantized.agreement", "quantized.logit_sqnr_db"]
        missing = [name for name in needed if name not in found]
        assert not missing, f"{task.name}: metrics lack {', '.join(missing)}"
        wrong = {k: v for k, v in found.items() if not k.endswith("_db") and not 0.0 <= v <= 1.0}
        assert not wrong, f"{task.name}: metrics outside 0 … 1: {wrong}"
        judged = task.judge(outputs, labels)
        if judged is not None:
            assert found[f"float.{task.score}"] == judged, (
                f"{task.name}: judge() gives {judged}, and metrics() another score"
            )
        same = task.metrics(outputs, outputs.clone(), labels)
        assert same["quantized.agreement"] == 1.0, f"{task.name}: equal outputs agree to {same['quantized.agreement']}"
        assert same[needed[0]] == same[needed[1]], f"{task.name}: equal outputs have two scores"
        assert task.agreement(outputs, outputs) == len(outputs), f"{task.name}: agreement() counts examples"

    def test_each_example_has_a_result(self) -> None:
        """That comparisons of runs can test."""
        task, (outputs, noisy, labels) = self.task, self.given()
        rows = task.by_example(outputs, noisy, labels)
        keys = ["quantized.by_example"] if "quantized.by_example" in rows else ["labels", "quantized.top1"]
        for key in keys:
            assert key in rows, f"{task.name}: by_example lacks {key}"
            assert rows[key].shape == (len(outputs),), f"{task.name}: {key} is no value for each example"
        if len(keys) == 1:
            values = [value for value in rows[keys[0]].tolist() if not math.isnan(value)]
            assert all(0.0 <= value <= 1.0 for value in values), f"{task.name}: {keys[0]} is outside 0 … 1: {values}"

    def test_it_changes_nothing(self) -> None:
        """Neither the outputs that it is given, nor torch's random numbers."""
        task, (outputs, noisy, labels) = self.task, self.given()
        before, state = [outputs.clone(), noisy.clone()], torch.random.get_rng_state()
        task.metrics(outputs, noisy, labels)
        task.by_example(outputs, noisy, labels)
        for now, then in zip((outputs, noisy), before, strict=True):
            assert torch.equal(now, then), f"{task.name} writes to outputs"
        assert torch.equal(torch.random.get_rng_state(), state), f"{task.name} draws from torch's global generator"
