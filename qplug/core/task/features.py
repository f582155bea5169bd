"""Features: the outputs of an encoder without a head, one or several vectors for each example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from qplug.core.chance import Chance
from qplug.core.errors import InputError
from qplug.core.examples import Label, Labels
from qplug.core.storage.hashing import fingerprint
from qplug.core.task.base import Task
from qplug.core.task.nearest import Bank, nearest_classes

SAME = 0.99
"""Cosine from which the features of two models count as equal, where no classes are given [ours]."""


def cosine_loss(features: Tensor) -> Tensor:
    """vᵀf with a random v of covariance (I − uuᵀ)/‖f‖² for each vector f with direction u.

    This covariance is the Hessian of 1 − cos(f, f̂) at f̂ = f. The squared gradient of one draw is therefore an unbiased
    estimate of the Hessian's diagonal (Hutchinson), as ``kl`` has it for logits [ours]. The gradient of 1 − cos itself
    is zero there.
    """
    fixed = features.detach()
    length = fixed.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    unit, draw = fixed / length, torch.randn(fixed.shape, dtype=fixed.dtype).to(fixed.device)
    probe: Tensor = (draw - unit * (draw * unit).sum(-1, keepdim=True)) / length
    return (probe * features).sum()


def squared_loss(features: Tensor) -> Tensor:
    """Likewise for ‖f̂ − f‖², with v of random signs."""
    signs = torch.randint(2, features.shape, dtype=features.dtype).to(features.device) * 2 - 1
    return (signs * features).sum()


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"cosine": cosine_loss, "squared": squared_loss}
"""Calibration losses by name: functions of features (B, …, C), summed over examples."""


@dataclass(frozen=True, eq=False, repr=False)
class Features(Task):
    """Outputs (N, C), or (N, tokens, C), or (N, C, H, W), judged by their cosine to the float model's features.

    The labels (N,) int64 are classes, and −1 where an example has none. Where every evaluation example has one,
    ``ClassifiedFeatures`` takes this task's place.

    Attributes:
        classes_by: (classes, C) float32, embeddings of the classes for zero-shot; ``None`` if there are none.
    """

    name = "features"
    losses = tuple(LOSSES)
    score = "cosine"
    score_title = "cosine"
    outputs = "(B, C), (B, tokens, C) or (B, C, H, W)"
    label_kind = "features, which are judged by classes"
    label_fix = "set label_column to the column of classes"
    named = ("image_embeds", "pooler_output", "last_hidden_state", "out")
    missing = -1

    classes_by: Tensor | None = None

    def __repr__(self) -> str:
        own = "" if self.classes_by is None else fingerprint({"classes_by": self.classes_by})
        return f"{type(self).__name__}({own})"

    def accepts(self, outputs: Tensor) -> bool:
        """Whether the outputs are vectors, tokens or maps of channels."""
        return outputs.dim() in (2, 3, 4)

    def settled(self, labels: Labels) -> Task:
        """``ClassifiedFeatures`` if every example has a label; else this task."""
        return ClassifiedFeatures(self.classes_by) if bool((labels >= 0).all()) else self

    def calibration_loss(self, name: str, outputs: Tensor) -> Tensor:
        """The loss ``LOSSES[name]``; the vectors of maps lie along axis 1."""
        return LOSSES[name](_channels_last(outputs))

    def divergence(self, outputs: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
        """Σ over examples of 1 − cosine, as the mean over an example's vectors; ``temperature`` has no part in it."""
        return (1 - cosines(target, outputs)).sum()

    def collect(self, labels: Sequence[Label]) -> Tensor:
        """(B,) int64."""
        return torch.tensor(labels, dtype=torch.int64)

    def check_labels(self, labels: Labels, outputs: Tensor, where: str) -> None:
        """Check that labels are below the number of class embeddings, if there are some."""
        if self.classes_by is None:
            return
        if int(labels.max()) >= len(self.classes_by):
            raise InputError(
                f"an example has label {int(labels.max())}, and there are {len(self.classes_by)} class embeddings",
                where=where,
                fix="give one embedding for each class, in the order of the labels",
            )
        width = vectors(outputs).shape[1]
        if self.classes_by.shape[1] != width:
            raise InputError(
                f"the class embeddings have {self.classes_by.shape[1]} channels, and the features {width}",
                where="model.class_embeddings",
                fix="give the embeddings of this model's text tower, or set model.output to its projected features",
            )

    def mismatch(self, label: Label, shape: Sequence[int]) -> str:
        """Why a label is no class; empty if it is one."""
        if isinstance(label, int):
            return ""
        kind = "answers" if isinstance(label, tuple) else type(label).__name__.lower()
        return f"features are judged by classes, and the labels are {kind}"

    def classes(self, shape: Sequence[int]) -> int | None:
        """The number of class embeddings; ``None`` without them, where a class may have any number."""
        return None if self.classes_by is None else len(self.classes_by)

    def energies(self, reference: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """y² and (y − ŷ)²."""
        return reference.double().square(), (outputs - reference).double().square()

    def agreement(self, first: Tensor, second: Tensor) -> int:
        """The number of examples with a cosine of at least ``SAME``; with class embeddings, of those of equal class."""
        if self.classes_by is not None:
            return int((zero_shot(first, self.classes_by) == zero_shot(second, self.classes_by)).sum())
        return int((cosines(first, second) >= SAME).sum())

    def judge(self, outputs: Tensor, labels: Labels) -> float | None:
        """``None``: a cosine needs the float model's features beside."""
        return None

    def metrics(self, float_: Tensor, quantized: Tensor, labels: Labels) -> dict[str, float]:
        """``quantized.cosine``, the mean over examples, ``quantized.agreement`` and ``quantized.logit_sqnr_db``.

        ``float.cosine`` is 1. The SQNR is that of all elements of the features.
        """
        signal, noise = (energy.sum() for energy in self.energies(float_, quantized))
        return {
            "float.cosine": 1.0,
            "quantized.cosine": float(cosines(float_, quantized).mean()),
            "quantized.agreement": self.agreement(float_, quantized) / len(float_),
            "quantized.logit_sqnr_db": float(10 * torch.log10(signal / noise)),
        }

    def by_example(self, float_: Tensor, quantized: Tensor, labels: Labels) -> dict[str, Tensor]:
        """``quantized.by_example``, the cosine; ``logits.signal`` Σy² and ``logits.noise`` Σ(y − ŷ)²."""
        signal, noise = self.energies(float_, quantized)
        return {
            "logits.signal": signal.flatten(1).sum(1).float(),
            "logits.noise": noise.flatten(1).sum(1).float(),
            "quantized.by_example": cosines(float_, quantized).float(),
        }

    def doubts(self, score: float) -> list[str]:
        """None: the float model's features are the measure."""
        return []


@dataclass(frozen=True, eq=False, repr=False)
class ClassifiedFeatures(Features):
    """Features of examples with classes, judged as a classifier too.

    A feature has the class whose embedding has the largest cosine (zero-shot), where there are class embeddings. Else
    its nearest neighbours vote (``nearest_classes``): those in a bank, each model in its own features of it, or the
    other evaluation examples (leave-one-out).

    Attributes:
        float_bank, quantized_bank: labelled features of other examples, of each model; ``None``: leave-one-out.
    """

    score = "top1"
    score_title = "top-1"
    float_bank: Bank | None = None
    quantized_bank: Bank | None = None

    @property
    def by(self) -> str:
        """What gives a feature its class, in words."""
        if self.classes_by is not None:
            return f"zero-shot, by {len(self.classes_by)} class embeddings"
        if self.float_bank is not None:
            return f"{self.float_bank.neighbours} nearest neighbours among {len(self.float_bank.vectors)} bank images"
        return "nearest neighbours among the other evaluation images"

    def predictions(self, outputs: Tensor, labels: Tensor, bank: Bank | None) -> Tensor:
        """(N,) the class of each example; −1 for an example without a neighbour."""
        if self.classes_by is not None:
            return zero_shot(outputs, self.classes_by)
        own = vectors(outputs)
        return nearest_classes(own, bank if bank is not None else Bank(own, labels, apart=True))

    def judge(self, outputs: Tensor, labels: Labels) -> float:
        """The quantized model's top-1."""
        return float((self.predictions(outputs, labels, self.quantized_bank) == labels).double().mean())

    def chance(self, outputs: Tensor, labels: Labels) -> Chance:
        """Of the float model's classes."""
        return Chance.of(self.predictions(outputs, labels, self.float_bank).tolist(), labels.tolist())

    def metrics(self, float_: Tensor, quantized: Tensor, labels: Labels) -> dict[str, float]:
        """Those of ``Features``, with ``float.top1`` and ``quantized.top1``."""
        right = self.predictions(float_, labels, self.float_bank) == labels
        own = {"float.top1": float(right.double().mean()), "quantized.top1": self.judge(quantized, labels)}
        return own | super().metrics(float_, quantized, labels)

    def by_example(self, float_: Tensor, quantized: Tensor, labels: Labels) -> dict[str, Tensor]:
        """``labels`` and both models' ``top1`` (int32) beside the energies; comparisons test the classes."""
        found = super().by_example(float_, quantized, labels)
        found["cosine"] = found.pop("quantized.by_example")
        return found | {
            "labels": labels.int(),
            "float.top1": self.predictions(float_, labels, self.float_bank).int(),
            "quantized.top1": self.predictions(quantized, labels, self.quantized_bank).int(),
        }


def vectors(outputs: Tensor) -> Tensor:
    """(N, C): the mean over tokens or positions, where there are several [ours]."""
    return outputs.mean(1) if outputs.dim() == 3 else outputs.mean((2, 3)) if outputs.dim() == 4 else outputs


def zero_shot(outputs: Tensor, classes_by: Tensor) -> Tensor:
    """(N,) the class whose embedding has the largest cosine."""
    return (F.normalize(vectors(outputs), dim=-1) @ F.normalize(classes_by.to(outputs), dim=-1).T).argmax(-1)


def _channels_last(outputs: Tensor) -> Tensor:
    return outputs.movedim(1, -1) if outputs.dim() == 4 else outputs


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """(N,) float64: cosine of each example's vectors, as the mean over its vectors."""
    one, other = (F.normalize(_channels_last(outputs).double(), dim=-1, eps=1e-30) for outputs in (first, second))
    found = (one * other).sum(-1).reshape(len(first), -1).mean(1)
    return torch.where(found > 1 - 1e-12, 1.0, found)  # equal features, whose cosine rounding moves
