"""The sections ``finetune`` and ``qat`` of a recipe: data order, augmentation, optimizer, schedule and loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from qplug.core.component import Config

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Ratio = Annotated[float, Field(gt=0.0, le=100.0)]


class Augment(Config):
    """timm's augmentations of training images, with timm's names and defaults."""

    scale: tuple[Share, Share] = Field((0.08, 1.0), description="share of the image's area that a random crop keeps")
    ratio: tuple[Ratio, Ratio] = Field((3 / 4, 4 / 3), description="aspect ratio of a random crop, width by height")
    hflip: Share = Field(0.5, description="probability of a flip from left to right")
    vflip: Share = Field(0.0, description="probability of a flip from top to bottom")
    color_jitter: float = Field(0.4, ge=0.0, le=1.0, description="strength of jitter, if auto_augment is not set")
    auto_augment: str | None = Field(
        None, min_length=1, description="timm's policy, such as rand-m9-mstd0.5-inc1, augmix-m3 or original"
    )
    erase: Share = Field(0.0, description="probability of random erasing")

    @model_validator(mode="after")
    def _in_order(self) -> Augment:
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high or high == 0:
                raise ValueError(f"expected '{name}' as a range [low, high] with high > 0, received [{low}, {high}]")
        return self


class Distill(Config):
    """Distillation from the float model: (1 − weight)·cross-entropy + weight·T²·KL(float ‖ trained)."""

    weight: float = Field(0.5, gt=0.0, le=1.0, description="share of the distillation in the loss")
    temperature: float = Field(1.0, gt=0.0, le=100.0, description="T, the divisor of both models' logits")


class Training(Config):
    """Settings of a training on ``data.training``, which uses Hugging Face accelerate."""

    epochs: int = Field(ge=1, le=100_000, description="passes over the training images")
    batch_size: int = Field(64, ge=1, le=1 << 20, description="images of one step, over all processes together")
    accumulate: int = Field(1, ge=1, le=65536, description="parts in which a batch is computed, to save memory")
    optimizer: str = Field("adamw", min_length=1, description="timm's name of the optimizer")
    learning_rate: float = Field(2e-5, gt=0.0, le=10.0, description="largest learning rate, after the warm-up")
    weight_decay: float = Field(
        0.0, ge=0.0, le=10.0, description="decay of weights, and in qat of bounds of activations; nothing else decays"
    )
    schedule: Literal["cosine", "constant"] = Field("cosine", description="learning rate after the warm-up")
    warmup: float = Field(0.05, ge=0.0, lt=1.0, description="share of the steps in which the rate grows linearly")
    clip: float | None = Field(
        None, gt=0.0, description="largest gradient norm of all weights, and largest gradient norm of all scales"
    )
    label_smoothing: float = Field(
        0.1, ge=0.0, lt=1.0, description="share of a label that is spread evenly over all classes"
    )
    augment: Augment | None = Field(Augment(), description="augmentation of images; null prepares as for evaluation")
    distill: Distill | None = Field(None, description="distillation from the float model, in addition to the labels")
    ema: float | None = Field(
        None, gt=0.0, lt=1.0, description="decay of a moving average of the learned parameters, which is the result"
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="number type of forward and backward"
    )
    hold_out: int = Field(0, ge=0, description="training images held out from training; top-1 on them every epoch")
    divergence: float = Field(
        2.0, gt=1.0, description="stop if the loss reaches the loss of guessing and this multiple of the initial loss"
    )
    checkpoint_minutes: float = Field(10.0, ge=0.0, description="minutes between checkpoints in the cache")
    workers: int = Field(0, ge=0, le=1024, description="additional processes that prepare images")


WITHOUT_INFLUENCE = ("checkpoint_minutes", "workers", "divergence")
"""Keys of ``Training`` that change no result."""


class FineTune(Training):
    """Fine-tuning of the float model, after rewrites and before quantization."""


class Learn(Config):
    """Quantization parameters that are learned in addition to the weights, if the quantizer supports it."""

    weight_scales: bool = Field(True, description="the scales of weights, as LSQ does")
    activation_scales: bool = Field(True, description="the scales of activations, as LSQ does")
    zero_points: bool = Field(False, description="the zero points of asymmetric activations, as LSQ+ does")
    bounds: bool = Field(True, description="parameters named alpha of inserted modules, such as PACT's")
    rate: float = Field(
        1.0, gt=0.0, le=1e6, description="learning rate of scales and zero points, relative to the weights' rate"
    )


class Qat(Training):
    """Quantization-aware training of the weights, and of the quantization parameters in ``learn``."""

    learn: Learn = Learn()
