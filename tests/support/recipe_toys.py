"""A registry of toy components, so that these tests depend on no plugin and import no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from qplug.core.component import Config, DataSource, ModelSource, Technique
from qplug.core.types import BackendOffer, Granularity
from qplug.hooks.registry import Plugin, Registry
from qplug.hooks.specs import hookimpl


class Ranges(Technique):
    """Ranges."""

    paper = "a toy"

    class Config(Config):
        """Its values."""

        use: Literal["toy.ranges"]
        percentile: float = Field(99.9, ge=50.0, le=100.0, description="per cent of the values kept")
        mode: Literal["fast", "exact"] = "fast"

    @hookimpl
    def qplug_make_quantizer(self, site: Any) -> None:
        return None


class Split(Technique):
    """Splits."""

    class Config(Config):
        """Its values."""

        use: Literal["toy.split"]
        split: int | Literal["auto"] = "auto"
        limits: tuple[int, ...] = ()
        granularity: Granularity = Granularity.PER_TENSOR

    @hookimpl
    def qplug_smooth(self, group: Any) -> None:
        return None


class Bits(Technique):
    """Bits."""

    allocates = ("candidates", "least")

    class Config(Config):
        """Its values."""

        use: Literal["toy.bits"]
        candidates: tuple[int, ...] = (4, 8)
        least: int = 2

    @hookimpl
    def qplug_allocate_bits(self, table: Any) -> None:
        return None


class Model(ModelSource):
    """A model by name."""

    class Config(Config):
        """Its values."""

        source: Literal["named"]
        name: str
        checkpoint_path: Path | None = None


class Other(ModelSource):
    """A model by path."""

    class Config(Config):
        """Its values."""

        source: Literal["path"]
        path: Path


class Images(DataSource):
    """Images."""

    class Config(Config):
        """Its values."""

        source: Literal["images"]
        split: Literal["train", "test"] = "train"
        images: int | None = Field(None, ge=1, description="images chosen by the seed")


class Folder(DataSource):
    """A folder."""

    class Config(Config):
        """Its values."""

        source: Literal["folder"]
        path: Path
        class_map: Path | None = None


def registry() -> Registry:
    """Toy components, and a plugin that failed to import."""
    toy = Plugin("toy", "qplug-toy", "1.2.3", "qplug_toy")
    torn = Plugin("torn", "qplug-torn", "0.4", "qplug_torn", error="ModuleNotFoundError: No module named 'scipy'")
    result = Registry(
        plugins=[toy, torn], backends={name: BackendOffer("toy:Backend") for name in ("brevitas", "modelopt")}
    )
    for technique in (Ranges, Split):
        result.techniques[technique.name()] = technique
        result.owners[f"technique:{technique.name()}"] = toy
    result.models = {source.name(): source for source in (Model, Other)}
    result.datasets = {source.name(): source for source in (Images, Folder)}
    return result


GOOD = """\
version: 1
model: {source: named, name: vit}
data:
  calibration: {source: images, split: train, images: 8}
  evaluation: {source: images, split: test}
backend: brevitas
quantize:
  weights: {bits: 4}
  activations: {bits: 4, granularity: per_tensor}
techniques:
  - use: toy.split
    split: 3
  - use: toy.ranges
"""
