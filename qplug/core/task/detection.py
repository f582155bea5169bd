"""Detection, and instance segmentation: boxes with scores and classes, and masks of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qplug.core.errors import InputError
from qplug.core.examples import Label
from qplug.core.instances import Instances
from qplug.core.task.average_precision import CocoJudge
from qplug.core.task.base import Task
from qplug.core.task.detection_rows import (
    BOX,
    SCORE,
    aligned,
    coco_results,
    common_share,
    padded,
)

LEAST_SCORE = 1e-3
"""Scores are held this far from 0 and 1 in losses, whose weights would be infinite there."""
AGREEING = 0.9
"""Share of the scores on the same objects from which the detections of an image agree."""


class Detection(Task):
    """Outputs (B, D, 6 or 6 + side²): D detections of an image, with its objects (``Instances``) as labels.

    A row is x1, y1, x2, y2 in pixels of the input, score, class, and the probabilities of a mask of ``side`` × ``side``
    pixels within the box. Rows of score 0 are none. A model that returns a dict of ``boxes``, ``scores``, ``labels``
    and ``masks`` for each image, as torchvision's do, is read by ``read``.

    AP and AP50 are COCO's, by pycocotools: the mean over IoUs of 0.50 to 0.95, and at 0.50; of masks too if there are
    any. Agreement is the share of the scores that both models give to the same objects, 2·Σ min(s, s′)/(Σ s + Σ s′):
    the sum is over pairs of detections of one class with an IoU of at least 0.5. Two runs are told apart by the AP of
    each image alone; that is no test of the AP itself, which is no mean over images.

    Rows of two models are compared after matching, since quantization changes their order.

    Args:
        classes: the number of classes, counted from 0 as the model does; ``None`` if it is not known.
        side: rows and columns of masks; 0 without masks.
        limit: detections of an image.
        background: whether class 0 is the background, which no object has.
    """

    name = "detection"
    losses = ("kl", "logits")
    score = "ap"
    score_title = "AP"
    outputs = "(B, detections, 6)"
    label_kind = "boxes"
    label_fix = "give the categories that the model was trained with (data.*.labels: category_id or position)"
    causes = "the labels (category_id or position), the preprocessing, or the checkpoint"

    def __init__(self, classes: int | None = None, side: int = 0, limit: int = 100, background: bool = False) -> None:
        self.classes_known, self.side, self.limit, self.background = classes, side, limit, background

    def __repr__(self) -> str:
        """The task with its options."""
        return f"{type(self).__name__}(classes={self.classes_known}, side={self.side}, limit={self.limit})"

    def accepts(self, outputs: Tensor) -> bool:
        """Whether these are rows of detections."""
        return outputs.dim() == 3 and outputs.shape[-1] == 6 + self.side**2

    def read(self, outputs: Any) -> Tensor | None:
        """A list of dicts, one for each image, as (B, limit, 6 + side²)."""
        if not isinstance(outputs, (list, tuple)) or not all(isinstance(one, Mapping) for one in outputs):
            return None
        if not outputs or not all({"boxes", "scores", "labels"} <= one.keys() for one in outputs):
            return None
        return torch.stack([padded(self._rows(one), self.limit) for one in outputs])

    def _rows(self, image: Mapping[str, Tensor]) -> Tensor:
        columns = [image["boxes"], image["scores"][:, None], image["labels"][:, None].to(image["boxes"])]
        rows = torch.cat([*columns, *([image["masks"].flatten(1)] if self.side else [])], 1)
        return rows * (image["scores"] > 0)[:, None]

    def candidates(self, outputs: Tensor) -> Tensor:
        """(B, N, 6 + side²): rows that are differentiable in boxes and scores; here the outputs themselves."""
        return outputs

    def detections(self, outputs: Tensor) -> Tensor:
        """(B, limit, 6 + side²): the rows that count, best first; here the outputs themselves."""
        return self.candidates(outputs)

    def calibration_loss(self, name: str, outputs: Tensor) -> Tensor:
        """A probe of candidates with random signs, whose squared gradient is on average the diagonal of a Hessian.

        ``kl``: that of the KL divergence of each score s as a coin, ds²/(s·(1 − s)), and of boxes as shares of their
        own sizes, weighted by s [ours]. ``logits``: that of the squared differences of scores and of such boxes [ours].
        """
        rows = self.candidates(outputs)
        scores, shares = _parts(rows, rows.detach())
        weight = rows[..., SCORE].detach().clamp(LEAST_SCORE, 1.0 - LEAST_SCORE)
        if name == "kl":
            scores, shares = scores / (weight * (1.0 - weight)).sqrt(), shares * weight.sqrt()[..., None]
        there = rows[..., SCORE].detach() > 0
        values = torch.cat([scores[..., None], shares], -1) * there[..., None]
        return (values * _signs(values)).sum()

    def divergence(self, outputs: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
        """Σ over candidates of (s − s′)²/(s·(1 − s)) + s·‖box − box′‖², the box as shares of the target's size.

        That is the second order of the KL divergence of scores as coins. ``temperature`` has no effect.
        """
        wanted = self.candidates(target).detach()
        rows, left = self._aligned(wanted, self.candidates(outputs))
        weight = wanted[..., SCORE].clamp(LEAST_SCORE, 1.0 - LEAST_SCORE)
        there = wanted[..., SCORE] > 0
        scores = (rows[..., SCORE] - wanted[..., SCORE]).square() / (weight * (1.0 - weight))
        _, shares = _parts(rows - wanted, wanted)
        found = (scores + weight * shares.square().sum(-1)) * there
        return found.sum() + left[..., SCORE].square().sum()

    def _aligned(self, reference: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return aligned(reference, rows)

    def energies(self, reference: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """y² and (y − ŷ)² of scores, and of boxes as shares of their sizes, times the score; 0 elsewhere.

        A detection that has no counterpart counts with its whole score.
        """
        rows, left = aligned(reference, outputs)
        signal, noise = (torch.zeros_like(reference, dtype=torch.float64) for _ in range(2))
        score = reference[..., SCORE].double()
        _, shares = _parts(rows - reference, reference)
        signal[..., SCORE] = score.square()
        signal[..., BOX] = score.square()[..., None]
        noise[..., SCORE] = (rows[..., SCORE].double() - score).square() + left[..., SCORE].double().square()
        noise[..., BOX] = (shares.double() * score[..., None]).square()
        return signal, noise

    def check_labels(self, labels: Sequence[Instances], outputs: Tensor, where: str) -> None:
        """Check that classes are among the model's."""
        for label in labels:
            if what := self.mismatch(label, tuple(outputs.shape[1:])):
                raise InputError(what, where=where, fix=self.label_fix)

    def mismatch(self, label: Label, shape: Sequence[int]) -> str:
        """Why a label is no list of objects whose classes the model has; empty if it is."""
        if not isinstance(label, Instances):
            return f"the model predicts boxes, and a label is {label!r}"[:200]
        first, last = int(self.background), (self.classes_known or 0) - 1
        if label.classes and min(label.classes) < first:
            return "an object has class 0, which is the background of the model"
        if self.classes_known is None or not label.classes or max(label.classes) <= last:
            return ""
        return f"an object has class {max(label.classes)}, and the model has classes {first} … {last}"

    def judge(self, outputs: Tensor, labels: Sequence[Instances]) -> float:
        """AP of boxes, or of masks if the model makes them."""
        return self._measured(outputs, labels, "segm" if self.side else "bbox")[0]

    def metrics(self, float_: Tensor, quantized: Tensor, labels: Sequence[Instances]) -> dict[str, float]:
        """AP and AP50 of both models, agreement and SQNR.

        ``ap`` and ``ap50`` are of masks if the model makes them; ``box_ap`` and ``box_ap50`` are of its boxes then.
        """
        found: dict[str, float] = {}
        for name, outputs in (("float", float_), ("quantized", quantized)):
            kinds = (("", "segm"), ("box_", "bbox")) if self.side else (("", "bbox"),)
            for prefix, kind in kinds:
                ap, ap50 = self._measured(outputs, labels, kind)
                found |= {f"{name}.{prefix}ap": ap, f"{name}.{prefix}ap50": ap50}
        shares = self._shares(float_, quantized)
        signal, noise = (energy.sum() for energy in self.energies(float_, quantized))
        total = sum(both for _, both in shares)
        found["quantized.agreement"] = sum(common for common, _ in shares) / total if total else 1.0
        found["quantized.logit_sqnr_db"] = float(10 * torch.log10(signal / noise))
        return found

    def by_example(self, float_: Tensor, quantized: Tensor, labels: Sequence[Instances]) -> dict[str, Tensor]:
        """``float.by_example`` and ``quantized.by_example``: the AP of each image alone, NaN without objects."""
        judge = CocoJudge(labels, "segm" if self.side else "bbox")
        both = (("float", float_), ("quantized", quantized))
        return {
            f"{name}.by_example": torch.from_numpy(judge.by_image(self._results(outputs, labels)))
            for name, outputs in both
        }

    def agreement(self, first: Tensor, second: Tensor) -> int:
        """The number of images in which both models give at least 0.9 of their scores to the same objects."""
        return sum(common >= AGREEING * both for common, both in self._shares(first, second))

    def _shares(self, first: Tensor, second: Tensor) -> list[tuple[float, float]]:
        one, other = self.detections(first), self.detections(second)
        return [common_share(mine, theirs) for mine, theirs in zip(one, other, strict=True)]

    def _measured(self, outputs: Tensor, labels: Sequence[Instances], kind: str) -> tuple[float, float]:
        return CocoJudge(labels, kind).measures(self._results(outputs, labels))

    def _results(self, outputs: Tensor, labels: Sequence[Instances]) -> list[list[dict[str, Any]]]:
        rows = self.detections(outputs.detach())
        return [coco_results(own, label, self.side) for own, label in zip(rows, labels, strict=True)]


class DenseDetection(Detection):
    """Detection by a model with a fixed number of candidates, whose outputs are what its heads return.

    A subclass says in ``candidates`` how outputs become boxes, scores and classes, and in ``detections`` which of them
    count, as ``suppressed`` does. Outputs are compared element by element, and candidates in their places. Suppression
    is then no part of the model, of its gradients, or of an exported file.
    """

    def accepts(self, outputs: Tensor) -> bool:
        """Any outputs, of which ``candidates`` makes rows."""
        return True

    def _aligned(self, reference: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return rows, torch.zeros_like(rows)

    def energies(self, reference: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """y² and (y − ŷ)² of every output."""
        return reference.double().square(), (outputs - reference).double().square()


def _parts(rows: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (…), and boxes (…, 4) as shares of the width and height of those of ``sizes``."""
    extent = (sizes[..., 2:4] - sizes[..., 0:2]).clamp_min(1.0)
    return rows[..., SCORE], rows[..., BOX] / torch.cat([extent, extent], -1)


def _signs(values: Tensor) -> Tensor:
    """±1, drawn on the CPU: equal on every device."""
    return (torch.randint(2, values.shape, dtype=torch.float32) * 2.0 - 1.0).to(values)
