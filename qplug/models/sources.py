"""Where models come from: timm, the embedded zoo, any import path. Importing this module does not import torch."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, JsonValue, model_validator

from qplug.core.component import Config, ModelSource
from qplug.core.errors import InputError
from qplug.core.storage.hashing import code_digest, sha256
from qplug.core.text import did_you_mean
from qplug.models.float_model import FloatModel, Preprocessing

if TYPE_CHECKING:
    from torch import nn

CHECKPOINT = "weights to load: a safetensors file, or .pth/.pt with tensors only"
Pixels = Annotated[int, Field(ge=1, le=4096)]
Positive = Annotated[float, Field(gt=0)]


class PreprocessingConfig(Config):
    """Values to use in place of those of the model's own configuration."""

    input_size: tuple[Literal[1, 3], Pixels, Pixels] | None = Field(
        default=None, description="(channels, height, width) in pixels; timm builds the architecture for it"
    )
    mean: tuple[float, ...] | None = Field(default=None, description="of each channel, pixels in 0 … 1")
    std: tuple[Positive, ...] | None = Field(default=None, description="of each channel, pixels in 0 … 1")
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] | None = Field(
        default=None, description="of the resize"
    )
    crop_pct: float | None = Field(default=None, gt=0, le=1, description="share of the resized image that is kept")
    crop_mode: Literal["center", "squash", "border"] | None = Field(default=None, description="how the crop is cut")


class TimmModel(ModelSource):
    """A model of timm by its name, with downloaded weights, a checkpoint, or (noted in the results) random ones."""

    class Config(Config):
        """``model: {source: timm, name: deit_tiny_patch16_224, checkpoint_path: …}``."""

        source: Literal["timm"]
        name: str = Field(min_length=1, description="timm's name of the architecture, with or without a pretrained tag")
        pretrained: bool = Field(default=False, description="fetch timm's weights, or take them from its cache")
        checkpoint_path: str | None = Field(default=None, min_length=1, description=CHECKPOINT)
        num_classes: int | None = Field(
            default=None, ge=1, description="outputs, where not the architecture's own number"
        )
        preprocessing: PreprocessingConfig = PreprocessingConfig()

        @model_validator(mode="after")
        def _one_origin(self) -> TimmModel.Config:
            if self.pretrained and self.checkpoint_path is not None:
                raise ValueError("'pretrained' and 'checkpoint_path' both say where the weights come from; give one")
            return self

    def load(self) -> FloatModel:
        """Build the model; raises ``InputError`` for an unknown name or weights that are missing or do not fit."""
        config = self.config
        own = _known(config.name)
        size = config.preprocessing.input_size
        kwargs: dict[str, Any] = {}
        if config.num_classes is not None:
            kwargs["num_classes"] = config.num_classes
        if size is not None and size[0] != own.input_size[0]:
            kwargs["in_chans"] = size[0]
        if size is not None and size[1:] != tuple(own.input_size[1:]):
            kwargs["img_size"] = size[1:]
        resample = "img_size" in kwargs
        module = self._create(kwargs)
        note = ""
        if config.checkpoint_path is not None:
            from qplug.models.checkpoint import load

            note = load(module, Path(config.checkpoint_path).expanduser(), config.name, resample=resample)
        elif not config.pretrained:
            note = "the weights are random (neither pretrained nor checkpoint_path is given)"
        elif config.num_classes not in (None, own.num_classes):
            note = f"the classifier is random: the pretrained weights have {own.num_classes} classes"
        return FloatModel.of(module, config.name, preprocessing(module, config.preprocessing), note)

    def key(self) -> dict[str, Any]:
        """With timm's version, which stands for the architecture, its preprocessing and the weights of its hub."""
        return super().key() | _timm()

    def _create(self, kwargs: dict[str, Any]) -> nn.Module:
        import timm

        name, pretrained = self.config.name, self.config.pretrained
        try:
            module: nn.Module = seeded(lambda: timm.create_model(name, pretrained=pretrained, **kwargs))
        except Exception as error:  # the hub, the network and an architecture's assertions each fail in their own way
            if isinstance(error, TypeError) and "'img_size'" in str(error):
                # a convolutional architecture: it takes images of any size, and no such argument
                return self._create({key: value for key, value in kwargs.items() if key != "img_size"})
            reason = f"({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            if pretrained:
                raise InputError(
                    f"timm's weights of {name} could not be fetched {reason}",
                    fix="offline, give checkpoint_path: a safetensors file with these weights",
                ) from error
            raise InputError(f"timm cannot build {name} with {kwargs} {reason}") from error
        return module


class ZooModel(ModelSource):
    """A small model that ``qplug zoo train`` trains; the weights of those for digits came with the installation."""

    class Config(Config):
        """``model: {source: zoo, name: vit_digits}``."""

        source: Literal["zoo"]
        name: Literal[
            "vit_digits",
            "mixer_digits",
            "resmlp_digits",
            "convmixer_digits",
            "mixer_cifar10",
            "resmlp_cifar10",
            "convmixer_cifar10",
        ] = Field(
            description="a ViT, MLP-Mixer, ResMLP or ConvMixer of 0.03 to 0.17 M parameters, for 8×8 grey digits "
            "or for the 32×32 photographs of CIFAR-10"
        )
        checkpoint_path: str | None = Field(
            default=None, min_length=1, description=f"{CHECKPOINT}; for digits, in the place of the embedded weights"
        )

        @model_validator(mode="after")
        def _weights(self) -> ZooModel.Config:
            from qplug.models.zoo import ZOO

            if self.checkpoint_path is None and not ZOO[self.name].embedded:
                raise ValueError(
                    f"{self.name} has no embedded weights, and no checkpoint was given: "
                    f"'qplug zoo train {self.name} --data FOLDER' makes one"
                )
            return self

    def load(self) -> FloatModel:
        """Build the model; raises ``InputError`` where its checkpoint is missing, damaged or does not fit."""
        from qplug.models.zoo import ZOO, weights

        config, note = self.config, ""
        entry = ZOO[config.name]
        module = seeded(entry.build)
        if config.checkpoint_path is not None:
            from qplug.models.checkpoint import load

            note = load(module, Path(config.checkpoint_path).expanduser(), config.name)
        elif entry.embedded:
            module.load_state_dict(weights(config.name))
        return FloatModel.of(module, config.name, entry.preprocessing, note)

    def key(self) -> dict[str, Any]:
        """With the embedded weights where they are used, and timm's version for the architecture."""
        from qplug.models.zoo import checkpoint

        own = {} if self.config.checkpoint_path else {"checkpoint": sha256(checkpoint(self.config.name))}
        return super().key() | _timm() | own


class ImportedModel(ModelSource):
    """What an importable function returns: ``target(**kwargs)``, a ``torch.nn.Module`` from images to logits.

    A recipe with this source runs the code that it names. The module must be importable: installed, or on PYTHONPATH.
    """

    class Config(Config):
        """``model: {source: import, target: "my_models:make", kwargs: {depth: 12}}``."""

        source: Literal["import"]
        target: str = Field(
            pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$", description="module:function, or module:Class"
        )
        kwargs: dict[str, JsonValue] = Field(default={}, description="keyword arguments of the function")
        checkpoint_path: str | None = Field(default=None, min_length=1, description=CHECKPOINT)
        preprocessing: PreprocessingConfig = PreprocessingConfig()

    def load(self) -> FloatModel:
        """Call the function; raises ``InputError`` where it cannot be imported, fails, or returns something else."""
        from torch import nn

        config = self.config
        make = _resolve(config.target)
        try:
            module = seeded(lambda: make(**config.kwargs))
        except Exception as error:  # the user's own code
            raise InputError(
                f"{config.target} failed with {config.kwargs}: {type(error).__name__}: {error}", fix="see kwargs"
            ) from error
        if not isinstance(module, nn.Module):
            raise InputError(f"{config.target} returned {type(module).__name__}, not a torch.nn.Module")
        note = f"the weights are those that {config.target} returned"
        if config.checkpoint_path is not None:
            from qplug.models.checkpoint import load

            note = load(module, Path(config.checkpoint_path).expanduser(), config.target)
        return FloatModel.of(module, config.target, preprocessing(module, config.preprocessing), note)

    def key(self) -> dict[str, Any]:
        """With the code of the function's top-level package; of files that ``kwargs`` name it knows only the names."""
        return super().key() | _timm() | {"code": code_digest(self.config.target.partition(":")[0])}


def preprocessing(module: nn.Module, config: PreprocessingConfig) -> Preprocessing:
    """The model's own configuration under that of the recipe; raises ``InputError`` for what neither says."""
    values: dict[str, Any] = {}
    if getattr(module, "pretrained_cfg", None):
        from timm.data import resolve_model_data_config

        values = resolve_model_data_config(module)
    values |= config.model_dump(exclude_none=True)
    values.setdefault("crop_mode", "center")
    missing = [name for name in PreprocessingConfig.model_fields if name not in values]
    if missing:
        raise InputError(
            "the model does not say how its images are prepared",
            fix=f"under model.preprocessing, set {', '.join(missing)}",
        )
    channels = values["input_size"][0]
    for name in ("mean", "std"):
        if len(values[name]) != channels:
            raise InputError(f"preprocessing.{name} has {len(values[name])} values for {channels} channels")
    return Preprocessing(
        input_size=tuple(values["input_size"]),
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
        interpolation=values["interpolation"],
        crop_pct=values["crop_pct"],
        crop_mode=values["crop_mode"],
    )


def _known(name: str) -> Any:
    """timm's own configuration of a name; raises ``InputError`` with the names that are close."""
    import timm

    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise InputError(
            f"timm has no model '{name}'", fix=did_you_mean(base, timm.list_models()) or "timm.list_models() lists all"
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise InputError(f"timm has no weights '{tag}' for {base}", fix=f"there are: {', '.join(tags) or 'none'}")
    return timm.get_pretrained_cfg(name)


def _timm() -> dict[str, Any]:
    return {"timm": importlib.metadata.version("timm")}


def _resolve(target: str) -> Callable[..., Any]:
    path, _, attribute = target.partition(":")
    try:
        found: Any = importlib.import_module(path)
    except Exception as error:  # the user's own code, or its absence
        raise InputError(
            f"{target} cannot be imported: {type(error).__name__}: {error}",
            fix="install the package, or put the folder of the file on PYTHONPATH",
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise InputError(f"{path} has no '{part}' (target: {target})", fix=did_you_mean(part, dir(found)))
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"{target} is {type(found).__name__}, nothing to call")
    return found  # type: ignore[no-any-return]


def seeded(make: Callable[[], Any]) -> Any:
    """First weights that are the same in every run, without touching the caller's random numbers."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()
