"""A technique end to end: the pipeline, with a toy model and toy images in the place of real ones."""

from __future__ import annotations

import copy
import hashlib
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from torch import nn

from qplug.core.component import Config, DataSource, ModelSource, Technique
from qplug.core.types import QuantSpec, Site
from qplug.hooks.registry import Plugin, Registry, installed
from qplug.hooks.specs import hookimpl
from qplug.models.float_model import FloatModel, Preprocessing
from qplug.quantization.calibration.statistics import SiteStats
from qplug.quantization.choice import QuantizerChoice
from qplug.quantization.quantizers import UniformQuantizer
from qplug.recipe import Recipe, recipe_type
from qplug.testing.toys import CLASSES, SIZE, toy_vit

if TYPE_CHECKING:
    from qplug.pipeline.results import RunResult

OWNER = Plugin("toy", "qplug.testing", "0", "qplug.testing")


class ToyMinMax(Technique):
    """The last step of every toy recipe: min-max ranges for what the technique under test leaves."""

    class Config(Config):
        """No parameters."""

        use: Literal["toy.minmax"] = "toy.minmax"

    @hookimpl(trylast=True)
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice:
        """Take every site."""
        return QuantizerChoice(UniformQuantizer.from_range(*stats.range(spec.granularity), spec), "min-max")


class ToyModel(ModelSource):
    """``toy_vit``; every module that is loaded is kept in ``loaded``, so that a test can look at it after the run."""

    class Config(Config):
        """No parameters."""

        source: Literal["toy"] = "toy"

    def load(self) -> FloatModel:
        """A fresh one each time."""
        preprocessing = Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3, "nearest", 1.0)
        return FloatModel.of(toy_vit(), "toy_vit", preprocessing)


class ToyData(DataSource):
    """Noise, different in each split, with labels that mean nothing."""

    class Config(Config):
        """Two splits."""

        source: Literal["toy"] = "toy"
        split: Literal["train", "test"]
        images: int = 4

    def open(self, seed: int) -> ToyImages:
        """The images of this split and seed."""
        return ToyImages(self.config.split, self.config.images, seed)


class ToyImages:
    """``Examples`` of random pixels."""

    def __init__(self, split: str, images: int, seed: int) -> None:
        draw = np.random.default_rng([seed, int(split == "test")])
        self._pixels = draw.integers(0, 256, (images, *SIZE[1:], SIZE[0]), dtype=np.uint8)
        self._split = split

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self._pixels[index]), self.label(index)

    def label(self, index: int) -> int:
        """The classes in turn."""
        return index % CLASSES

    def key(self, index: int) -> str:
        """Split and index."""
        return f"toy/{self._split}/{index}"

    def size_hint(self, index: int) -> int:
        """The same for all."""
        return int(self._pixels[index].nbytes)

    def digest(self, index: int) -> str:
        """Of the pixels."""
        return hashlib.sha256(self._pixels[index].tobytes()).hexdigest()


def toy_registry(*techniques: type[Technique], loaded: list[nn.Module] | None = None) -> Registry:
    """What is installed, and with it the toys and ``techniques``, whether their plugin is installed or not.

    Args:
        techniques: to add.
        loaded: receives the module of every toy model that a run loads.
    """

    class Model(ToyModel):
        def load(self) -> FloatModel:
            model = super().load()
            if loaded is not None:
                loaded.append(model.module)
            return model

    registry = copy.copy(installed())
    registry.models = registry.models | {"toy": Model}
    registry.datasets = registry.datasets | {"toy": ToyData}
    everything: tuple[type[Technique], ...] = (*techniques, ToyMinMax)
    added = {technique.name(): technique for technique in everything}
    registry.techniques = registry.techniques | added
    registry.owners = {f"technique:{name}": OWNER for name in added} | registry.owners
    return registry


def toy_recipe(
    technique: type[Technique], *, registry: Registry | None = None, bits: int = 4, **parameters: Any
) -> Recipe:
    """A validated recipe on the toys: the technique with ``parameters``, then min-max ranges; ``bits`` everywhere."""
    return recipe_type(registry or toy_registry(technique)).model_validate(
        {
            "version": 1,
            "model": {"source": "toy"},
            "data": {
                "calibration": {"source": "toy", "split": "train"},
                "evaluation": {"source": "toy", "split": "test"},
            },
            "quantize": {"weights": {"bits": bits}, "activations": {"bits": bits}},
            "techniques": [{"use": technique.name(), **parameters}, {"use": "toy.minmax"}],
        }
    )


def toy_run(
    technique: type[Technique], *, loaded: list[nn.Module] | None = None, bits: int = 4, **parameters: Any
) -> RunResult:
    """Run ``toy_recipe`` through the pipeline; writes nothing. ``loaded`` as in ``toy_registry``."""
    from qplug.pipeline.run import run

    registry = toy_registry(technique, loaded=loaded)
    return run(toy_recipe(technique, registry=registry, bits=bits, **parameters), out=None, registry=registry)
