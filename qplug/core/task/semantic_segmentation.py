"""Semantic segmentation: one class for every pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from qplug.core.errors import InputError
from qplug.core.examples import Annotation, Label, Labels
from qplug.core.task.base import Task
from qplug.core.task.choices import LOSSES
from qplug.core.task.label_map import IGNORE, LabelMap, confusion, mean_iou, pixel_accuracy

SAME = 0.99
"""Share of equal pixels from which two predictions of an image count as equal [ours]."""


class SemanticSegmentation(Task):
    """Outputs (N, classes, h, w): logits of every position; labels: a ``LabelMap`` for each image.

    Logits of another size than the label map are resized to it bilinearly, as the processors of SegFormer and UperNet
    do (``align_corners=False``); a pixel's class is that of its largest logit. The score is the mean intersection over
    union of the counts over all images. Images are compared one by one by their own mean IoU, over the classes that
    the truth or the prediction has.
    """

    name = "semantic_segmentation"
    losses = tuple(LOSSES)
    score = "miou"
    score_title = "mIoU"
    outputs = "(B, classes, H, W)"
    label_kind = "a class for every pixel"
    label_fix = (
        f"use source: masks, with a label map for each image; mark pixels of no class by {IGNORE}, and set "
        "reduce_labels where class 0 of the files is none"
    )
    causes = "the label maps (reduce_labels, the order of the classes), the preparation of images, or the checkpoint"
    whole_image = True

    def accepts(self, outputs: Tensor) -> bool:
        """Whether the outputs are maps of at least two classes."""
        return outputs.dim() == 4 and outputs.shape[1] > 1

    def calibration_loss(self, name: str, outputs: Tensor) -> Tensor:
        """The loss of ``choices.LOSSES``, summed over positions and examples."""
        return LOSSES[name](outputs.movedim(1, -1))

    def divergence(self, outputs: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
        """Σ over examples of the mean over positions of KL(softmax(target/T) ‖ softmax(outputs/T))."""
        p, q = ((z / temperature).log_softmax(1) for z in (target, outputs))
        return F.kl_div(q, p, reduction="sum", log_target=True) / (outputs.shape[2] * outputs.shape[3])

    def check_labels(self, labels: Labels, outputs: Tensor, where: str) -> None:
        """Check that every label is below the number of classes."""
        classes = outputs.shape[1]
        for label in labels:
            if what := _beyond(label, classes):
                raise InputError(what, where=where, fix=self.label_fix)

    def mismatch(self, label: Label, shape: Sequence[int]) -> str:
        """Why a label is no map of classes."""
        if isinstance(label, LabelMap):
            return _beyond(label, shape[0])
        received = type(label).__name__.lower() if isinstance(label, Annotation) else repr(label)
        return f"the model predicts {self.label_kind}, and a label is {received}"

    def predictions(self, outputs: Tensor, size: Sequence[int]) -> Tensor:
        """(N, H, W) int64 of images of ``size`` (H, W)."""
        if tuple(outputs.shape[2:]) != tuple(size):
            outputs = F.interpolate(outputs, tuple(size), mode="bilinear", align_corners=False)
        return outputs.argmax(1)

    def counts(self, outputs: Tensor, labels: Sequence[LabelMap]) -> Tensor:
        """(N, classes, classes) int64: ``confusion`` of each example."""
        found = []
        for one, label in zip(outputs, labels, strict=True):
            (predicted,) = self.predictions(one[None], label.values.shape)
            found.append(confusion(label.values, predicted, outputs.shape[1]))
        return torch.stack(found)

    def energies(self, reference: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """y² and (y − ŷ)²."""
        return reference.double().square(), (outputs - reference).double().square()

    def judge(self, outputs: Tensor, labels: Labels) -> float:
        """The mean IoU over all images."""
        return mean_iou(self.counts(outputs, labels).sum(0))

    def metrics(self, float_: Tensor, quantized: Tensor, labels: Labels) -> dict[str, float]:
        """``miou`` and ``pixel_accuracy`` of both models, the share of equal pixels, and the SQNR of the logits."""
        found: dict[str, float] = {}
        for name, outputs in (("float", float_), ("quantized", quantized)):
            counts = self.counts(outputs, labels).sum(0)
            found |= {f"{name}.miou": mean_iou(counts), f"{name}.pixel_accuracy": pixel_accuracy(counts)}
        signal, noise = self._sums(float_, quantized).sum(0)
        same = (float_.argmax(1) == quantized.argmax(1)).double().mean()
        sqnr = float(10 * torch.log10(signal / noise))
        return found | {"quantized.agreement": float(same), "quantized.logit_sqnr_db": sqnr}

    def by_example(self, float_: Tensor, quantized: Tensor, labels: Labels) -> dict[str, Tensor]:
        """``quantized.by_example`` and ``float.by_example``, the mean IoU of each image, and the logits' energies."""
        signal, noise = self._sums(float_, quantized).float().unbind(1)
        return {
            "logits.signal": signal.contiguous(),
            "logits.noise": noise.contiguous(),
            "float.by_example": torch.tensor([mean_iou(one) for one in self.counts(float_, labels)]),
            "quantized.by_example": torch.tensor([mean_iou(one) for one in self.counts(quantized, labels)]),
        }

    def agreement(self, first: Tensor, second: Tensor) -> int:
        """The number of images with at least ``SAME`` of their positions in the same class."""
        share = (first.argmax(1) == second.argmax(1)).flatten(1).double().mean(1)
        return int((share >= SAME).sum())

    def relative_change(self, before: Tensor, after: Tensor) -> float:
        """‖after − before‖ / ‖before‖, example by example: maps are large."""
        signal, noise = self._sums(before, after).sum(0)
        return float((noise / signal.clamp_min(1e-24)).sqrt())

    def _sums(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """(N, 2) float64: Σy² and Σ(y − ŷ)² of each example."""
        rows = [
            torch.stack([part.sum() for part in self.energies(a, b)]) for a, b in zip(reference, outputs, strict=True)
        ]
        return torch.stack(rows)


def _beyond(label: LabelMap, classes: int) -> str:
    """Which class of a label map the model does not have; empty if it has all."""
    judged = label.values[label.values != IGNORE]
    if not len(judged) or int(judged.max()) < classes:
        return ""
    return f"a label map has class {int(judged.max())}, and the model has classes 0 … {classes - 1}"
