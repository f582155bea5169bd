"""Augmented inputs from the items of a data set, by timm's augmentations with one seed per item."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qplug.core.errors import InputError
from qplug.data.preparation import Preparation
from qplug.models.float_model import Preprocessing
from qplug.training.supervised.config import Augment


def transform(preparation: Preparation, augment: Augment | None) -> Callable[[Any], Tensor]:
    """The transform from an item to an augmented input.

    Texts, and images without ``augment``, are prepared as for evaluation. timm's augmentations expect colour images:
    grey images are converted to colour for them, and back to grey afterwards.

    Raises:
        InputError: timm does not know the policy.
    """
    if augment is None or not isinstance(preparation, Preprocessing):
        return preparation.transform()
    from timm.data import create_transform

    try:
        crop, distort, finish = create_transform(
            input_size=preparation.input_size,
            is_training=True,
            mean=preparation.mean,
            std=preparation.std,
            interpolation=preparation.interpolation,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.hflip,
            vflip=augment.vflip,
            color_jitter=augment.color_jitter or None,
            auto_augment=augment.auto_augment,
            re_prob=augment.erase,
            separate=True,
        )
    except (AssertionError, KeyError, ValueError) as error:
        message = f"timm refuses this augmentation: {type(error).__name__}: {error}"
        raise InputError(message, where="augment", fix="see timm.data.auto_augment for the policies") from error
    _limit_posterizing(distort)
    grey = preparation.input_size[0] == 1

    def apply(image: Any) -> Tensor:
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # PIL warns without this conversion
        distorted = distort(crop(image.convert("RGB")))
        augmented: Tensor = finish(distorted.convert("L") if grey else distorted)
        return augmented

    return apply


def _limit_posterizing(part: Any) -> None:
    """Make timm's posterizing keep at least one bit: strong policies keep none, which Pillow 13 refuses."""
    if getattr(part, "name", "").startswith("Posterize"):
        posterize = part.aug_fn
        part.aug_fn = lambda image, bits, **more: posterize(image, max(bits, 1), **more)
    parts = part if isinstance(part, list) else [getattr(part, name, []) for name in ("transforms", "ops", "policy")]
    for child in parts:
        _limit_posterizing(child)


@contextmanager
def seeded_generators(*key: object) -> Iterator[None]:
    """A context that seeds ``random``, NumPy and torch on the CPU from ``key``; its end restores their states."""
    seed = zlib.crc32(":".join(map(str, key)).encode())
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
