"""Data source of scikit-learn's 1,797 handwritten digits, in a split that does not depend on the recipe's seed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from qplug.core.component import Config, DataSource
from qplug.core.examples import Classes
from qplug.core.storage.hashing import sha256
from qplug.data.loading import IMAGES, choose

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray
    from PIL import Image

Split = Literal["train", "test"]
SPLIT_SEED = 0


class Digits(DataSource):
    """8×8 grey images of ten digits: a stratified split into two thirds ``train`` and one third ``test``.

    The digits are those of UCI's *Optical Recognition of Handwritten Digits*, as included in scikit-learn.
    """

    class Config(Config):
        """``data.*: {source: digits, split: test}``."""

        source: Literal["digits"]
        split: Split = Field(description="train: 1,198 images; test: 599 images that the zoo's models did not train on")
        images: int | None = Field(default=None, ge=1, description=IMAGES)

    def open(self, seed: int) -> DigitImages:
        """Draw the images; raises ``InputError`` if there are fewer than ``images``."""
        pixels, _, _ = arrays(self.config.split)
        return DigitImages(
            self.config.split, choose(len(pixels), self.config.images, seed, f"digits/{self.config.split}")
        )

    def key(self, seed: int) -> dict[str, Any]:
        """The configuration, the seed, and the versions of scikit-learn and NumPy, which determine the images."""
        versions = {name: version(name) for name in ("scikit-learn", "numpy")}
        return {**self.config.model_dump(mode="json"), "seed": seed, "versions": versions}


class DigitImages:
    """``Examples`` over one split."""

    classes = Classes({str(digit): digit for digit in range(10)}, "digit")

    def __init__(self, split: Split, chosen: Sequence[int]) -> None:
        self._pixels, self._labels, self._indices = arrays(split)
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        from PIL import Image

        return Image.fromarray(self._pixels[self._chosen[index]]), self.label(index)

    def label(self, index: int) -> int:
        """The digit."""
        return int(self._labels[self._chosen[index]])

    def key(self, index: int) -> str:
        """``digits[i]``, with the index in ``sklearn.datasets.load_digits``."""
        return f"digits[{int(self._indices[self._chosen[index]])}]"

    def size_hint(self, index: int) -> int:
        """Always 64: one byte per pixel."""
        return int(self._pixels[self._chosen[index]].nbytes)

    def digest(self, index: int) -> str:
        """SHA-256 of the 64 pixels."""
        return sha256(self._pixels[self._chosen[index]].tobytes())


@functools.cache
def arrays(split: Split) -> tuple[NDArray[uint8], NDArray[Any], NDArray[Any]]:
    """One split: pixels (N, 8, 8) uint8 in 0 … 255, labels (N,) and indices (N,) in scikit-learn's order."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    # NumPy guarantees the stream of RandomState, but not that of Generator, for all versions; the embedded checkpoints
    # were trained on exactly this split.
    shuffle = np.random.RandomState(SPLIT_SEED)
    parts = []
    for digit in range(10):
        members = shuffle.permutation(np.flatnonzero(digits.target == digit))
        cut = round(len(members) / 3)
        parts.append(members[:cut] if split == "test" else members[cut:])
    indices = np.sort(np.concatenate(parts))
    pixels = np.rint(digits.images[indices] * (255 / 16)).astype(np.uint8)
    return pixels, digits.target[indices], indices
