"""``FloatModel`` and the preprocessing of its images. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qplug.core.errors import InputError
from qplug.core.storage.hashing import fingerprint
from qplug.core.text import listed
from qplug.data.preparation import Preparation

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from qplug.core.task import Task


@dataclass(frozen=True)
class Preprocessing:
    """Conversion of an image to the model's input, as timm defines it for evaluation.

    Attributes:
        input_size: (C, H, W) in pixels; C is 3 (RGB) or 1 (grey).
        mean: subtracted from each channel after scaling to [0, 1]; C values.
        std: divisor of each channel after that; C values.
        interpolation: filter of the resize: ``bicubic``, ``bilinear``, ``nearest``, ``lanczos``, ….
        crop_pct: side of the crop as a fraction of the resized image's side, in (0, 1].
        crop_mode: ``center``, ``squash`` or ``border``.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str = "center"

    @property
    def whole_image(self) -> bool:
        """Whether the input shows the whole image: only then do outputs fit it after a resize."""
        return self.crop_mode == "squash" and self.crop_pct == 1.0

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """A function from a PIL image of any mode to (C, H, W) float32."""
        from timm.data import create_transform

        mode = "L" if self.input_size[0] == 1 else "RGB"
        prepare = create_transform(
            input_size=self.input_size,
            is_training=False,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
        )

        def apply(image: Image.Image) -> Tensor:
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")  # PIL warns about a direct conversion
            tensor: Tensor = prepare(image if image.mode == mode else image.convert(mode))
            return tensor

        return apply

    def example(self) -> Tensor:
        """A random image (1, C, H, W) float32."""
        import torch

        return torch.randn((1, *self.input_size), generator=torch.Generator().manual_seed(0))


@dataclass
class FloatModel:
    """A float model in eval mode, on the CPU, in float32, with finite weights.

    Attributes:
        module: takes a batch, (B, C, H, W) float32 of images or (B, 3, L) int64 of texts (see ``Tokenization``), and
            returns logits: (B, classes), or (B, 2, L) for the starts and ends of answers to questions.
        name: readable name, without file names.
        preprocessing: conversion of images or texts to the model's input.
        fingerprint: SHA-256 of the state dict (see ``fingerprint``).
        note: a warning about the weights, for example that they are random; or empty.
        task_name: name of the task of the outputs, a key of ``qplug.core.task.TASKS`` or of a plugin's.
        own_task: the task itself, where the name alone does not tell it: one with options, or of a plugin.
    """

    module: nn.Module
    name: str
    preprocessing: Preparation
    fingerprint: str
    note: str = ""
    task_name: str = "classification"
    own_task: Task | None = None

    @property
    def task(self) -> Task:
        """The task of the outputs."""
        from qplug.core.task import TASKS

        return self.own_task if self.own_task is not None else TASKS[self.task_name]

    @classmethod
    def of(
        cls,
        module: nn.Module,
        name: str,
        preprocessing: Preparation,
        note: str = "",
        task_name: str = "classification",
        task: Task | None = None,
    ) -> FloatModel:
        """Convert a module to eval mode and float32 on the CPU, without ``torch.compile``.

        ``task`` goes before ``task_name``.

        Raises:
            InputError: a parameter or a running statistic is not finite, another buffer holds NaN, a parameter has no
                shape yet, or the module is scripted.
        """
        from qplug.models.eager import eager
        from qplug.models.effective_weight import detach_computed

        _check_replaceable(module, name)
        module = eager(module)
        detach_computed(module)
        module = module.cpu().float().eval().requires_grad_(False)
        broken = _unsound(module)
        if broken:
            raise InputError(
                f"the weights of {name} hold NaN or infinite values, in {listed(broken, 5)}",
                fix="use another checkpoint: these weights cannot be quantized",
            )
        state = module.state_dict()
        return cls(module, name, preprocessing, fingerprint(state), note, task.name if task else task_name, task)


def _check_replaceable(module: nn.Module, name: str) -> None:
    """Refuse a scripted model, and one whose lazy modules have no shapes yet."""
    from torch.jit import ScriptModule
    from torch.nn.parameter import is_lazy

    if isinstance(module, ScriptModule):
        raise InputError(
            f"{name} is scripted or traced by torch.jit, so that its operations cannot be replaced",
            fix="give the nn.Module that it was made from",
        )
    lazy = [key for key, value in (*module.named_parameters(), *module.named_buffers()) if is_lazy(value)]
    if lazy:
        raise InputError(
            f"{len(lazy)} tensors of {name} have no shape yet: {listed(lazy, 5)}",
            fix="run one forward before returning the model, so that its lazy modules get their shapes",
        )


def _unsound(module: nn.Module) -> list[str]:
    """Tensors whose values cannot be right. A buffer may hold infinite values, as masks of attention do."""
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    statistics = {key: value for key, value in buffers.items() if key.rpartition(".")[2].startswith("running_")}
    finite = {**parameters, **statistics}
    return [
        *(key for key, value in finite.items() if not bool(value.isfinite().all())),
        *(key for key, value in buffers.items() if key not in statistics and bool(value.isnan().any())),
    ]
