"""The shape of a recipe. ``recipe_type`` fills its open places (sources, techniques) from what is installed."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Union

from pydantic import Field, SerializeAsAny, ValidationInfo, create_model, field_validator, model_validator

from qplug.core.component import Component, Config
from qplug.core.types import Granularity, QuantSpec, Site, ZeroPoint
from qplug.hooks.registry import Registry
from qplug.quantization.number_formats import NUMBER_FORMATS
from qplug.training.supervised.config import FineTune, Qat, Training

Bits = Annotated[int, Field(ge=2, le=16, description="bit width, in bits")]


class TensorConfig(Config):
    """How tensors of one role are quantized where no override and no technique says otherwise."""

    bits: Bits
    granularity: Granularity = Field(Granularity.PER_TENSOR, description="how many scales a tensor gets")
    symmetric: bool = Field(True, description="whether zero maps to the integer 0 and the range is symmetric around it")
    number_format: str = Field("int", description=f"the numbers of a tensor: {', '.join(NUMBER_FORMATS)}")

    @field_validator("number_format")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in NUMBER_FORMATS:
            raise ValueError(f"there is no number format '{name}'; there are {', '.join(NUMBER_FORMATS)}")
        return name

    def spec(self) -> QuantSpec:
        """These values as the hooks receive them."""
        return QuantSpec(self.bits, self.granularity, self.symmetric, number_format=self.number_format)


class WeightConfig(TensorConfig):
    """As ``TensorConfig``, with one scale a channel unless the recipe says otherwise."""

    granularity: Granularity = Field(Granularity.PER_CHANNEL, description="how many scales a tensor gets")


class ActivationConfig(TensorConfig):
    """As ``TensorConfig``, with what stands for zero where the range is not symmetric around it."""

    zero_point: ZeroPoint = Field(
        "integer", description="what stands for zero where not symmetric: integer, as hardware has it, or any float"
    )

    @model_validator(mode="after")
    def _has_a_zero_point(self) -> ActivationConfig:
        if self.symmetric and self.zero_point == "float":
            raise ValueError("'zero_point: float' needs 'symmetric: false': a symmetric range has its zero at 0")
        return self

    def spec(self) -> QuantSpec:
        """These values as the hooks receive them."""
        return replace(super().spec(), zero_point=self.zero_point)


class Override(Config):
    """Other values for the sites that a pattern matches; the first override that matches a site wins."""

    match: str = Field(min_length=1, description="pattern (* ? [..]) over site names, module paths or site kinds")
    bits: Bits | None = None
    granularity: Granularity | None = Field(None, description="how many scales a tensor gets")
    symmetric: bool | None = None
    number_format: str | None = None
    skip: bool = Field(False, description="leave the sites in float")

    @model_validator(mode="after")
    def _says_something(self) -> Override:
        given = [
            name for name in ("bits", "granularity", "symmetric", "number_format") if getattr(self, name) is not None
        ]
        if self.skip and given:
            raise ValueError(f"'skip' leaves the sites in float, so '{given[0]}' cannot apply; give one of the two")
        if not self.skip and not given:
            raise ValueError("changes nothing: give bits, granularity, symmetric, number_format or skip")
        return self

    def matches(self, site: Site) -> bool:
        """Whether the pattern matches the site's name, its module's path or its kind."""
        return any(fnmatchcase(text, self.match) for text in (site.name, site.module, site.kind.value))


class CalibrationConfig(Config):
    """What the one pass over the calibration images collects for techniques that weigh errors by importance."""

    loss: Literal["kl", "logits", "cross_entropy", "kl_zero", "none"] = Field(
        "kl", description="whose gradient at an output says how much its error matters; none counts all alike"
    )


class Scope(Config):
    """Which inputs beyond those of linears, convolutions and matmuls are quantized too."""

    softmax: bool = Field(False, description="quantize the inputs of Softmax")
    layernorm: bool = Field(False, description="quantize the inputs of LayerNorm")


class Quantize(Config):
    """Bits and granularity before any technique has its say."""

    weights: WeightConfig
    activations: ActivationConfig
    overrides: tuple[Override, ...] = ()
    scope: Scope = Scope()


class DataConfig(Config):
    """Images to calibrate, to train and to measure with; what measures may overlap with neither of the others."""

    calibration: SerializeAsAny[Config]
    evaluation: SerializeAsAny[Config]
    training: SerializeAsAny[Config] | None = None
    batch_size: int = Field(32, ge=1, le=65536, description="images a batch")


class Published(Config):
    """One published figure: a model at some bits, top-1 in percent."""

    model: str = Field(min_length=1, description="the model, as timm names it")
    weights: float = Field(gt=0, le=32, description="bits of weights, on average")
    activations: float = Field(gt=0, le=32, description="bits of activations, on average")
    top1: float = Field(ge=0, le=100, description="top-1 of the quantized model, percent")
    float_top1: float | None = Field(
        None, ge=0, le=100, description="top-1 of its float model, percent; null where the paper does not print it"
    )


class Paper(Config):
    """What a recipe reproduces: it changes nothing in a run, and ``qplug compare --paper`` prints it beside the run."""

    title: str = Field(min_length=1, description="paper, with the table and the row")
    protocol: dict[str, str | int | float] = Field(
        default={}, description="what the paper says of its protocol, by the names of qplug's protocol"
    )
    published: tuple[Published, ...] = ()


class Recipe(Config):
    """Everything that decides a run, as ``load_recipe`` returns it; ``techniques`` are run in their order."""

    version: Literal[1] = Field(description="version of the recipe format")
    name: str = Field("", description="what tables call it; the file's name unless given")
    paper: Paper | None = Field(None, description="what it reproduces, for comparison with published figures")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="seeds the choice of calibration images and every random step")
    model: SerializeAsAny[Config]
    data: DataConfig
    calibration: CalibrationConfig = CalibrationConfig()
    backend: str = Field("brevitas", description="what executes the quantized operations")
    quantize: Quantize
    techniques: tuple[SerializeAsAny[Config], ...] = Field(min_length=1)
    finetune: FineTune | None = Field(None, description="train the float model after rewrites")
    qat: Qat | None = Field(None, description="train the quantized model")

    @field_validator("finetune", "qat")
    @classmethod
    def _has_images(cls, value: Training | None, info: ValidationInfo) -> Training | None:
        data = info.data.get("data")  # absent where it is itself wrong
        if value is not None and data is not None and data.training is None:
            raise ValueError("there is nothing to train on: give data.training, as data.calibration is given")
        return value

    @field_validator("version", mode="before")
    @classmethod
    def _is_a_number(cls, value: object) -> object:
        if isinstance(value, bool):  # True == 1, so that a Literal lets it pass
            raise ValueError("expected 1, received true or false")
        return value

    def dump(self) -> dict[str, Any]:
        """Every value, defaults included, as plain values that JSON and YAML can hold."""
        return self.model_dump(mode="json")

    def yaml(self) -> str:
        """``dump`` as YAML text; loading it again gives an equal recipe."""
        from ruamel.yaml import YAML

        yaml, stream = YAML(typ="safe", pure=True), io.StringIO()
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.dump(self.dump(), stream)
        return stream.getvalue()


def recipe_type(registry: Registry) -> type[Recipe]:
    """``Recipe`` with tagged unions of everything that ``registry`` holds in its open places."""
    return build_type(
        tuple(registry.models.values()), tuple(registry.datasets.values()), tuple(registry.techniques.values())
    )


@functools.lru_cache(maxsize=32)
def build_type(
    models: Sequence[type[Component]], datasets: Sequence[type[Component]], techniques: Sequence[type[Component]]
) -> type[Recipe]:
    """``Recipe`` with these components only, so that a component that a recipe does not name cannot disturb it."""
    source = _tagged(datasets)
    data = create_model(
        "DataConfig",
        __base__=DataConfig,
        __doc__=DataConfig.__doc__,
        calibration=(source, ...),
        evaluation=(source, ...),
        training=(source | None, None),
    )
    steps: Any = tuple[_tagged(techniques), ...]  # type: ignore[misc]
    return create_model(
        "Recipe",
        __base__=Recipe,
        __doc__=Recipe.__doc__,
        model=(_tagged(models), ...),
        data=(data, ...),
        techniques=(steps, Field(min_length=1)),
    )


def _tagged(components: Sequence[type[Component]]) -> Any:
    configs = tuple(component.Config for component in components)
    if len(configs) < 2:
        return configs[0] if configs else Config
    return Annotated[Union[configs], Field(discriminator=components[0].tag)]  # noqa: UP007


def json_schema(registry: Registry) -> dict[str, Any]:
    """The JSON Schema of recipes, with every installed plugin's sources, techniques and backends in it."""
    schema = recipe_type(registry).model_json_schema()
    if registry.backends:
        schema["properties"]["backend"]["enum"] = sorted(registry.backends)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
