"""From an item of a data set to an augmented input, by timm's augmentations, drawn from a seed of the item's own."""

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
    """From an item to an augmented input; texts, and images without ``augment``, are prepared as for evaluation.

    timm's augmentations expect colours: grey images are grey again before they become tensors. Raises ``InputError``
    for a policy that timm does not know.
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
        what = f"timm cannot augment so: {type(error).__name__}: {error}"
        raise InputError(what, where="augment", fix="see timm.data.auto_augment for the policies") from error
    _keep_a_bit(distort)
    grey = preparation.input_size[0] == 1

    def apply(image: Any) -> Tensor:
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # as PIL asks for, or it warns
        changed = distort(crop(image.convert("RGB")))
        made: Tensor = finish(changed.convert("L") if grey else changed)
        return made

    return apply


def _keep_a_bit(part: Any) -> None:
    """Let timm's posterizing keep one bit at least: strong policies ask for none, which Pillow 13 refuses."""
    if getattr(part, "name", "").startswith("Posterize"):
        posterize = part.aug_fn
        part.aug_fn = lambda image, bits, **more: posterize(image, max(bits, 1), **more)
    parts = part if isinstance(part, list) else [getattr(part, name, []) for name in ("transforms", "ops", "policy")]
    for one in parts:
        _keep_a_bit(one)


@contextmanager
def drawn_from(*key: object) -> Iterator[None]:
    """Within it, ``random``, NumPy and torch on the CPU draw from a seed made of ``key``; then they are as before."""
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
