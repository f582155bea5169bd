"""The sections ``finetune`` and ``qat`` of a recipe: how a model is trained, and on what terms."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from qplug.core.component import Config

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Ratio = Annotated[float, Field(gt=0.0, le=100.0)]


class Augment(Config):
    """timm's augmentations of training images, with timm's own defaults; the names are those of timm."""

    scale: tuple[Share, Share] = Field((0.08, 1.0), description="share of the image's area that a random crop keeps")
    ratio: tuple[Ratio, Ratio] = Field((3 / 4, 4 / 3), description="aspect ratio of a random crop, width by height")
    hflip: Share = Field(0.5, description="probability of a flip from left to right")
    vflip: Share = Field(0.0, description="probability of a flip from top to bottom")
    color_jitter: float = Field(0.4, ge=0.0, le=1.0, description="strength of jitter, where auto_augment is not set")
    auto_augment: str | None = Field(
        None, min_length=1, description="timm's policy, such as rand-m9-mstd0.5-inc1, augmix-m3 or original"
    )
    erase: Share = Field(0.0, description="probability of random erasing")

    @model_validator(mode="after")
    def _in_order(self) -> Augment:
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high or high == 0:
                raise ValueError(f"'{name}' is a range from the smaller to the larger, received [{low}, {high}]")
        return self


class Distill(Config):
    """Training beside the float model's answers: (1 − weight)·cross-entropy + weight·T²·KL(float ‖ trained)."""

    weight: float = Field(0.5, gt=0.0, le=1.0, description="share of the distillation in the loss")
    temperature: float = Field(1.0, gt=0.0, le=100.0, description="by which both models' logits are divided")


class Training(Config):
    """How a model is trained on ``data.training``, on Hugging Face accelerate."""

    epochs: int = Field(ge=1, le=100_000, description="passes over the training images")
    batch_size: int = Field(64, ge=1, le=1 << 20, description="images of one step, over all processes together")
    accumulate: int = Field(1, ge=1, le=65536, description="parts in which a batch is computed, to save memory")
    optimizer: str = Field("adamw", min_length=1, description="timm's name of the optimizer")
    learning_rate: float = Field(2e-5, gt=0.0, le=10.0, description="the largest, after the warm-up")
    weight_decay: float = Field(
        0.0, ge=0.0, le=10.0, description="of weights, and in qat of bounds of activations, of nothing else"
    )
    schedule: Literal["cosine", "constant"] = Field("cosine", description="of the learning rate after the warm-up")
    warmup: float = Field(0.05, ge=0.0, lt=1.0, description="share of the steps in which the rate grows linearly")
    clip: float | None = Field(None, gt=0.0, description="largest norm of the gradient of weights, and that of scales")
    label_smoothing: float = Field(0.1, ge=0.0, lt=1.0, description="share of a label that goes to all classes alike")
    augment: Augment | None = Field(Augment(), description="of images; null shows them as they are evaluated")
    distill: Distill | None = Field(None, description="learn from the float model beside the labels")
    ema: float | None = Field(None, gt=0.0, lt=1.0, description="decay of a moving average of what is learned, kept")
    precision: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of forward and backward")
    hold_out: int = Field(0, ge=0, description="training images that are not trained on: top-1 on them every epoch")
    divergence: float = Field(
        2.0, gt=1.0, description="stop where the loss is that of guessing and this many times the one at the start"
    )
    checkpoint_minutes: float = Field(10.0, ge=0.0, description="minutes between checkpoints, which the cache keeps")
    workers: int = Field(0, ge=0, le=1024, description="processes that prepare images beside the training one")


WITHOUT_INFLUENCE = ("checkpoint_minutes", "workers", "divergence")
"""Keys of ``Training`` that change no result."""


class FineTune(Training):
    """Fine-tuning of the float model, after rewrites and before anything is quantized."""


class Learn(Config):
    """What of the quantization is learned beside the weights, where the quantizer allows it."""

    weight_scales: bool = Field(True, description="the scales of weights, as LSQ does")
    activation_scales: bool = Field(True, description="the scales of activations, as LSQ does")
    zero_points: bool = Field(False, description="the zero points of asymmetric activations, as LSQ+ does")
    bounds: bool = Field(True, description="parameters named alpha of modules that a technique put in, such as PACT's")
    rate: float = Field(
        1.0, gt=0.0, le=1e6, description="learning rate of scales and zero points, in those of the weights"
    )


class Qat(Training):
    """Quantization-aware training of the quantized model: weights, and scales as ``learn`` says."""

    learn: Learn = Learn()
