"""The nouns of qplug: frozen values that hooks receive and return. Importing this module does not import torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn


class SiteKind(str, Enum):
    """What a tensor that can be quantized is. Recipes match on these values in ``overrides``.

    An activation function whose outputs have a kind of their own is one row: the kind, and the word by which the class
    of its module is known, in lower case.

    Attributes:
        activation: that word; empty for every other kind.
    """

    activation: str

    def __new__(cls, value: str, activation: str = "") -> SiteKind:
        """A member whose value is a plain string."""
        member = str.__new__(cls, value)
        member._value_, member.activation = value, activation
        return member

    LINEAR_WEIGHT = "linear_weight"
    CONV_WEIGHT = "conv_weight"
    LINEAR_INPUT = "linear_input"
    CONV_INPUT = "conv_input"
    POST_LAYERNORM = "post_layernorm"
    POST_GELU = "post_gelu", "gelu"
    QUERY = "query"
    KEY = "key"
    POST_SOFTMAX = "post_softmax"
    VALUE = "value"
    SOFTMAX_INPUT = "softmax_input"
    LAYERNORM_INPUT = "layernorm_input"

    @property
    def is_weight(self) -> bool:
        """Whether the tensor is a parameter (known before any image is seen)."""
        return self in (SiteKind.LINEAR_WEIGHT, SiteKind.CONV_WEIGHT)


class Granularity(str, Enum):
    """How many scales a tensor gets: one, one a channel, or one an attention head."""

    PER_TENSOR = "per_tensor"
    PER_CHANNEL = "per_channel"
    PER_HEAD = "per_head"


MASKED = -3.4028234663852886e38
"""The lowest float32: the logit of a token that cannot be part of an answer, and what attention adds for padding."""

OUT_OF_SCOPE = "quantize.scope"
"""Why the inputs of Softmax and LayerNorm stay in float where a recipe does not ask for them."""

ZeroPoint = Literal["integer", "float"]
"""What may stand for zero on the grid of an asymmetric quantizer."""

Role = Literal["weight", "input", "lhs", "rhs"]

LossName = Literal["mse", "fisher", "perturbation", "low_rank"]
"""What judges a reconstructed block's output; ``qplug.training.reconstruction.losses`` says what each is."""


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern (* ? [..]) is that of ``name``, as recipes match sites and modules."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True)
class Site:
    """One tensor that can be quantized.

    Attributes:
        name: unique and stable, ``<module>.<role>``, for example ``blocks.0.attn.qkv.weight``.
        kind: what the tensor is.
        module: dotted path of the operation that reads the tensor.
        role: which of the operation's tensors it is.
        shape: the weight's shape, or the activation's for one image, without the batch axis.
        macs: multiply-accumulates for one image of the operation that reads the tensor; 0 for norms and Softmax.
        channel_axis: the axis of a per-channel scale, counted from the end for activations (so that it holds with a
            batch axis too) and from the start for weights.
        head_axis: likewise the axis of a per-head scale, where the tensor has heads.
        source: dotted path of the norm that produces this tensor, where one does, with nothing but layout between.
    """

    name: str
    kind: SiteKind
    module: str
    role: Role
    shape: tuple[int, ...]
    macs: int = 0
    channel_axis: int = -1
    head_axis: int | None = None
    source: str | None = None

    @property
    def numel(self) -> int:
        """Number of elements, for one image."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class QuantSpec:
    """What the recipe asks of one site: ``bits`` (2 to 16), granularity, and whether zero must map to the integer 0.

    Where it need not, ``zero_point`` says what may stand for zero: an ``integer``, or any ``float`` (Q-MLP, Eq. 6).
    ``number_format`` names a row of ``qplug.quantization.number_formats``.
    """

    bits: int
    granularity: Granularity = Granularity.PER_TENSOR
    symmetric: bool = True
    zero_point: ZeroPoint = "integer"
    number_format: str = "int"


@dataclass(frozen=True)
class NormGroup:
    """A norm and every linear that reads it, where nothing else reads the norm's output.

    Attributes:
        norm: dotted path of the norm.
        linears: dotted paths of the linears that read it, in model order.
        weights: their weights, each ``(out, C)`` float32; do not write to them.
        weight_specs: what the recipe asks of each weight, in their order; ``None`` where it stays in float.
        input_spec: what the recipe asks of the norm's output; ``None`` where it stays in float.
    """

    norm: str
    linears: tuple[str, ...]
    weights: tuple[Tensor, ...]
    weight_specs: tuple[QuantSpec | None, ...] = ()
    input_spec: QuantSpec | None = None

    def matches(self, patterns: Iterable[str]) -> bool:
        """Whether a pattern (* ? [..]) is that of the norm or of one of its linears."""
        return any(matches(name, patterns) for name in (self.norm, *self.linears))

    def balance(self, largest: Tensor, output: float, weight: float) -> Tensor:
        """(C,) eps_j = largest_j^output / max|W_j|^weight, W_j being column j of all the weights (SmoothQuant, Eq. 4).

        1 where that is not positive and finite: a dead channel, or one that no weight reads, is not scaled.

        Args:
            largest: (C,) float32, the largest magnitude of each channel of the norm's output.
            output, weight: exponents, without unit.
        """
        import torch

        widest = torch.cat(self.weights).abs().amax(0)
        scale = largest**output / widest**weight
        return torch.where(torch.isfinite(scale) & (scale > 0), scale, torch.ones_like(scale))


@dataclass(frozen=True)
class Smoothing:
    """Replace a norm's output Y by ``(Y - shift) / scale``, and undo it in the linears that read it.

    Attributes:
        shift: (C,) float32, in the units of Y.
        scale: (C,) float32, positive, without unit.
        reason: a few words for the plan.
    """

    shift: Tensor
    scale: Tensor
    reason: str = ""


@dataclass(frozen=True)
class Rewrite:
    """A module to put in the place of another, and whether the model's function is promised to be the same."""

    module: nn.Module
    preserves: bool
    reason: str = ""


@dataclass(frozen=True)
class Adapter:
    """How to make one type of module into modules that sites, statistics and backends know: an attention's matmuls,
    or a convolution that pads by itself.

    Attributes:
        path: the type, as ``module:Class``; named by path so that nothing is imported before a model needs it.
        build: takes the original module and returns an equivalent one built from ``nn.Linear``, ``nn.Conv2d`` and
            ``qplug.models.attention``'s modules, or ``None`` where this variant of the type is not known to it.
    """

    path: str
    build: Callable[[nn.Module], nn.Module | None]


@dataclass(frozen=True)
class Extra:
    """A package that not every installation has: the module that it brings, and the command that installs it."""

    module: str
    install: str

    @property
    def missing(self) -> bool:
        """Whether it is not installed, found without importing it."""
        return importlib.util.find_spec(self.module) is None


@dataclass(frozen=True)
class BackendOffer:
    """A backend, and what of a recipe it cannot execute: read when a recipe is validated, without importing it.

    Attributes:
        path: ``module:Class`` of a ``qplug.quantization.backends.Backend``.
        needs: what must be installed for it.
        bits: the smallest and the largest bit width.
        granularities: how many scales a tensor may have.
        asymmetric: whether zero may map to another integer than 0.
        float_zero_points: whether what zero maps to may lie between integers (``QuantSpec.zero_point``).
        scope: of ``softmax`` and ``layernorm``, those whose inputs it can quantize.
        number_formats: names of those that it has; ``None`` where it executes any quantizer.
        without: hooks of techniques that it cannot serve, such as ``qplug_reconstruct`` where it has no gradients.
    """

    path: str
    needs: tuple[Extra, ...] = ()
    bits: tuple[int, int] = (2, 16)
    granularities: tuple[Granularity, ...] = tuple(Granularity)
    asymmetric: bool = True
    float_zero_points: bool = True
    scope: tuple[str, ...] = ("softmax", "layernorm")
    number_formats: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()

    def has(self, bits: int) -> bool:
        """Whether it can execute a tensor of so many bits."""
        low, high = self.bits
        return low <= bits <= high


@dataclass(frozen=True)
class Event:
    """Something that happened in a run, for observers: a stage began, advanced or ended.

    Attributes:
        stage: the stage's name, as in ``seconds.<stage>`` of the metrics.
        phase: ``start``, ``advance`` or ``end``.
        done: units done so far (images, sites), with ``advance``.
        total: units in all, 0 where unknown.
        note: one line worth showing.
    """

    stage: str
    phase: Literal["start", "advance", "end"]
    done: int = 0
    total: int = 0
    note: str = ""


@dataclass(frozen=True)
class Metric:
    """A measurement that a plugin adds: called with float and quantized logits (N, classes) and labels (N,).

    Where the model answers questions these are (N, 2, L), ``MASKED`` where there is padding, and (N, 2).
    """

    name: str
    compute: Callable[[Any, Any, Any], float]


@dataclass(frozen=True)
class Change:
    """A change of the float model before quantization: a rewrite, a folded BatchNorm, or a smoothing."""

    where: str
    technique: str
    preserves: bool
    reason: str


class Advance(Protocol):
    """Told how far a stage is: units done so far, and a few words."""

    def __call__(self, done: int, note: str = "") -> None:
        """``done`` units."""
