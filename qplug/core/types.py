"""Frozen values that hooks receive and return. Importing this module does not import torch."""

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
    """The kinds of tensors that can be quantized. Recipes match these values in ``overrides``.

    One row adds a kind for the outputs of an activation function: ``POST_SILU = "post_silu", "silu"``. Every module
    whose class name contains "silu", in any case, then gives this kind to the operations that read it.

    Attributes:
        activation: the second string of such a row; empty for every other kind.
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
        """Whether the tensor is a parameter, whose values need no calibration data."""
        return self in (SiteKind.LINEAR_WEIGHT, SiteKind.CONV_WEIGHT)


class Granularity(str, Enum):
    """The number of scales of a tensor: one, one per channel, or one per attention head."""

    PER_TENSOR = "per_tensor"
    PER_CHANNEL = "per_channel"
    PER_HEAD = "per_head"


MASKED = -3.4028234663852886e38
"""The lowest float32: the logit of a token that cannot be part of an answer, and attention's mask value at padding."""

OUT_OF_SCOPE = "quantize.scope"
"""The reason recorded for inputs of Softmax and LayerNorm that a recipe leaves in float."""

ZeroPoint = Literal["integer", "float"]
"""The type of an asymmetric quantizer's zero point."""

Role = Literal["weight", "input", "lhs", "rhs"]

LossName = Literal["mse", "fisher", "perturbation", "low_rank"]
"""The loss between a reconstructed block's output and its float output, defined in
``qplug.training.reconstruction.losses``.
"""


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether ``name`` matches one of the patterns (* ? [..]), as recipes match sites and modules."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True)
class Site:
    """One tensor that can be quantized.

    Attributes:
        name: unique and stable, ``<module>.<role>``, for example ``blocks.0.attn.qkv.weight``.
        kind: kind of the tensor.
        module: dotted path of the operation that reads the tensor.
        role: position of the tensor among the operation's operands.
        shape: shape of the weight, or of the activation for one image, without the batch axis.
        macs: multiply-accumulates for one image of the operation that reads the tensor; 0 for norms and Softmax.
        channel_axis: axis of a per-channel scale. It counts from the end for activations, so that it is also valid
            with a batch axis, and from the start for weights.
        head_axis: axis of a per-head scale, counted likewise; ``None`` if the tensor has no heads.
        source: dotted path of the norm whose output this tensor is, up to changes of layout; ``None`` if there is none.
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
    """The recipe's specification of one site's quantizer.

    ``bits`` is 2 to 16. A ``symmetric`` quantizer maps zero to the integer 0. An asymmetric one has a zero point of the
    type ``zero_point``: an ``integer``, or any ``float`` (Q-MLP, Eq. 6). ``number_format`` names a row of
    ``qplug.quantization.number_formats``.
    """

    bits: int
    granularity: Granularity = Granularity.PER_TENSOR
    symmetric: bool = True
    zero_point: ZeroPoint = "integer"
    number_format: str = "int"


@dataclass(frozen=True)
class NormGroup:
    """A norm and the linears that read its output; no other operation reads it.

    Attributes:
        norm: dotted path of the norm.
        linears: dotted paths of the linears that read it, in model order.
        weights: weights of the linears, each ``(out, C)`` float32; do not write to them.
        weight_specs: specification of each weight, in their order; ``None`` for a weight that stays in float.
        input_spec: specification of the norm's output; ``None`` if it stays in float.
    """

    norm: str
    linears: tuple[str, ...]
    weights: tuple[Tensor, ...]
    weight_specs: tuple[QuantSpec | None, ...] = ()
    input_spec: QuantSpec | None = None

    def matches(self, patterns: Iterable[str]) -> bool:
        """Whether the path of the norm or of one of its linears matches one of the patterns (* ? [..])."""
        return any(matches(name, patterns) for name in (self.norm, *self.linears))

    def balance(self, largest: Tensor, output: float, weight: float) -> Tensor:
        """(C,) eps_j = largest_j^output / max|W_j|^weight, W_j being column j of all the weights (SmoothQuant, Eq. 4).

        eps_j is 1 if the quotient is not positive and finite: a dead channel, or one that no weight reads, is not
        scaled.

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
    """Replacement of a norm's output Y by ``(Y - shift) / scale``, compensated in the linears that read it.

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
    """A replacement for a module; ``preserves`` declares that the model's function does not change."""

    module: nn.Module
    preserves: bool
    reason: str = ""


@dataclass(frozen=True)
class Adapter:
    """Converter of one module type to modules that can be quantized, such as the matmuls of an attention.

    Attributes:
        path: the module type, as ``module:Class``; a path, so that the module is imported only if a model needs it.
        build: takes the original module and returns an equivalent one, made of ``nn.Linear``, ``nn.Conv2d`` and the
            modules of ``qplug.models.attention``; ``None`` if it does not support this variant of the type.
    """

    path: str
    build: Callable[[nn.Module], nn.Module | None]


@dataclass(frozen=True)
class ForeignCode:
    """Code that a recipe names and that runs only with the user's word.

    Attributes:
        module: outermost module or package of the code; the user may trust it by this name.
        key: key of the configuration that names it, such as ``target``.
        what: the reason, as one clause: ``my_net:make is code from outside the installed packages``.
    """

    module: str
    key: str
    what: str


@dataclass(frozen=True)
class Extra:
    """An optional package: the module that it provides, and the command that installs it."""

    module: str
    install: str

    @property
    def missing(self) -> bool:
        """Whether it is not installed; the check does not import it."""
        return importlib.util.find_spec(self.module) is None


@dataclass(frozen=True)
class BackendOffer:
    """A backend and the features that it supports. Recipes are validated against it without importing the backend.

    Attributes:
        path: ``module:Class`` of a ``qplug.quantization.backends.Backend``.
        needs: optional packages that it requires.
        bits: the smallest and the largest bit width.
        granularities: the supported granularities.
        asymmetric: whether the zero point may be another integer than 0.
        float_zero_points: whether the zero point may be a float (``QuantSpec.zero_point``).
        scope: which inputs of ``softmax`` and ``layernorm`` it can quantize.
        number_formats: names of the supported number formats; ``None`` if it executes any quantizer.
        without: unsupported hooks, such as ``qplug_reconstruct`` for a backend without gradients.
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
        """Whether it supports this bit width."""
        low, high = self.bits
        return low <= bits <= high


@dataclass(frozen=True)
class Event:
    """An event of a run, for observers: a stage began, advanced or ended.

    Attributes:
        stage: the stage's name, as in ``seconds.<stage>`` of the metrics.
        phase: ``start``, ``advance`` or ``end``.
        done: number of units (images, sites) done so far, with ``advance``.
        total: number of units, 0 if unknown.
        note: one line to display, or empty.
    """

    stage: str
    phase: Literal["start", "advance", "end"]
    done: int = 0
    total: int = 0
    note: str = ""


@dataclass(frozen=True)
class Metric:
    """A metric that a plugin adds. ``compute`` takes float and quantized logits (N, classes) and labels (N,).

    For question answering, logits are (N, 2, L) with ``MASKED`` at padding, and labels are (N, 2).
    ``best_is_least`` says that a smaller value is better, for ``qplug compare --sort``.
    """

    name: str
    compute: Callable[[Any, Any, Any], float]
    best_is_least: bool = False


@dataclass(frozen=True)
class Change:
    """A change of the float model before quantization: a rewrite, a folded BatchNorm, or a smoothing."""

    where: str
    technique: str
    preserves: bool
    reason: str


class Advance(Protocol):
    """A callback for the progress of a stage: the number of units done so far, and a short note."""

    def __call__(self, done: int, note: str = "") -> None:
        """Report that ``done`` units are done."""
