"""Model sources: timm, the embedded zoo, any import path. Importing this module does not import torch."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from qplug.core.component import Config, ModelSource
from qplug.core.errors import InputError, Terminated, ending
from qplug.core.storage.hashing import code_digest, sha256
from qplug.core.text import did_you_mean
from qplug.core.types import ForeignCode
from qplug.models.float_model import FloatModel, Preprocessing
from qplug.models.imported import foreign_code, refuse_standard_library, resolve

if TYPE_CHECKING:
    from torch import nn

CHECKPOINT = "weights to load: a safetensors file, or .pth/.pt with tensors only"
HUB_PREFIXES = ("https://huggingface.co/", "hf-hub:", "hf_hub:")
"""What precedes ``owner/model`` in names of models on Hugging Face's hub."""
Pixels = Annotated[int, Field(ge=1, le=4096)]
Positive = Annotated[float, Field(gt=0)]


class PreprocessingConfig(Config):
    """Values that replace those of the model's own configuration."""

    input_size: tuple[Literal[1, 3], Pixels, Pixels] | None = Field(
        default=None, description="(channels, height, width) in pixels; timm builds the architecture for it"
    )
    mean: tuple[float, ...] | None = Field(default=None, description="mean of each channel, for pixels in 0 … 1")
    std: tuple[Positive, ...] | None = Field(
        default=None, description="standard deviation of each channel, for pixels in 0 … 1"
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] | None = Field(
        default=None, description="filter of the resize"
    )
    crop_pct: float | None = Field(
        default=None, gt=0, le=1, description="side of the crop as a fraction of the resized image's side"
    )
    crop_mode: Literal["center", "squash", "border"] | None = Field(default=None, description="timm's mode of the crop")


class TimmModel(ModelSource):
    """A model of timm by its name, with downloaded weights, a checkpoint, or random weights (with a warning)."""

    class Config(Config):
        """``model: {source: timm, name: deit_tiny_patch16_224, checkpoint_path: …}``."""

        source: Literal["timm"]
        name: str = Field(
            min_length=1,
            description="timm's name of the architecture, with or without a pretrained tag, or its name on the hub",
        )
        pretrained: bool = Field(default=False, description="load timm's weights from its cache, or download them")
        checkpoint_path: str | None = Field(default=None, min_length=1, description=CHECKPOINT)
        num_classes: int | None = Field(
            default=None,
            ge=0,
            description="number of outputs; the architecture's default if unset; 0 leaves out the classifier, and the "
            "task is features",
        )
        preprocessing: PreprocessingConfig = PreprocessingConfig()

        @model_validator(mode="after")
        def _one_weight_source(self) -> TimmModel.Config:
            if self.pretrained and self.checkpoint_path is not None:
                raise ValueError("'pretrained' and 'checkpoint_path' are both sources of the weights; give one")
            return self

    def load(self) -> FloatModel:
        """Build the model; raises ``InputError`` for an unknown name, or for weights that are missing or do not fit."""
        config, name = self.config, timm_name(self.config.name)
        own = _timm_config(name)
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

            path = Path(config.checkpoint_path).expanduser()
            note = load(module, path, name, resample=resample)
        elif not config.pretrained:
            note = "the weights are random (neither pretrained nor checkpoint_path is given)"
        elif config.num_classes not in (None, 0, own.num_classes):
            note = f"the classifier is random: the pretrained weights have {own.num_classes} classes"
        if name != config.name:
            note = "; ".join(filter(None, [f"{config.name} is timm's {name}", note]))
        prepared = preprocessing(module, config.preprocessing)
        headless = getattr(module, "num_classes", None) == 0
        return FloatModel.of(module, name, prepared, note, "features" if headless else "classification")

    def key(self) -> dict[str, Any]:
        """The base key with timm's version, which identifies architecture, preprocessing and pretrained weights."""
        return super().key() | _timm()

    def _create(self, kwargs: dict[str, Any]) -> nn.Module:
        import timm

        name, pretrained = timm_name(self.config.name), self.config.pretrained
        try:
            module: nn.Module = seeded_weights(lambda: timm.create_model(name, pretrained=pretrained, **kwargs))
        except Exception as error:  # the hub, the network and an architecture's assertions raise different types
            if isinstance(error, TypeError) and "'img_size'" in str(error):
                # a convolutional architecture takes images of any size and has no argument img_size
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
    """A small model that ``qplug zoo train`` trains; the weights of those for embedded data are part of the package."""

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
            "mask_rcnn_shapes",
        ] = Field(
            description="a ViT, MLP-Mixer, ResMLP or ConvMixer of 0.03 to 0.17 M parameters, for 8×8 grey digits "
            "or for the 32×32 photographs of CIFAR-10; or a Mask R-CNN of 0.37 M on Swin, for 96×96 scenes of shapes"
        )
        task: Literal["classification", "features"] = Field(
            default="classification", description="features: without the classifier"
        )
        checkpoint_path: str | None = Field(
            default=None, min_length=1, description=f"{CHECKPOINT}; it replaces the embedded weights, if there are any"
        )

        @model_validator(mode="after")
        def _weights(self) -> ZooModel.Config:
            from qplug.models.zoo import ZOO

            if self.checkpoint_path is None and not ZOO[self.name].embedded:
                raise ValueError(
                    f"{self.name} has no embedded weights, and no checkpoint was given: "
                    f"'qplug zoo train {self.name} --data FOLDER' creates a checkpoint"
                )
            return self

    def load(self) -> FloatModel:
        """Build the model; raises ``InputError`` if its checkpoint is missing, damaged or does not fit."""
        from qplug.models.zoo import ZOO, weights

        config, note = self.config, ""
        entry = ZOO[config.name]
        module = seeded_weights(entry.build)
        if config.checkpoint_path is not None:
            from qplug.models.checkpoint import load

            note = load(module, Path(config.checkpoint_path).expanduser(), config.name, classes="")
        elif entry.embedded:
            module.load_state_dict(weights(config.name))
        if entry.data == "shapes":
            return _embedded_detector(module, config, note)
        if config.task == "features":
            module.reset_classifier(0)
        return FloatModel.of(module, config.name, entry.preprocessing, note, config.task)

    def key(self) -> dict[str, Any]:
        """The base key with the digest of the embedded weights, if used, and timm's version for the architecture."""
        from qplug.models.zoo import checkpoint

        own = {} if self.config.checkpoint_path else {"checkpoint": sha256(checkpoint(self.config.name))}
        return super().key() | _timm() | own


class ImportedModel(ModelSource):
    """A model that an importable function returns: ``target(**kwargs)`` is a ``torch.nn.Module`` from images to logits.

    Its module must be installed or on PYTHONPATH. A recipe that would run code from outside the installed packages
    needs the user's word: ``--allow-code``, or ``allow_code=True`` in Python.
    """

    class Config(Config):
        """``model: {source: import, target: "my_models:make", kwargs: {depth: 12}}``."""

        source: Literal["import"]
        target: str = Field(
            pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$", description="module:function, or module:Class"
        )
        kwargs: dict[str, JsonValue] = Field(default={}, description="keyword arguments of the function")
        task: str = Field(
            default="classification", min_length=1, description="what the outputs are: the name of an installed task"
        )
        checkpoint_path: str | None = Field(default=None, min_length=1, description=CHECKPOINT)
        preprocessing: PreprocessingConfig = PreprocessingConfig()

        @field_validator("target")
        @classmethod
        def _no_standard_library(cls, target: str) -> str:
            return refuse_standard_library(target)

    @classmethod
    def foreign_code(cls, config: Any, importing: bool) -> ForeignCode | None:
        """The target, unless it is of an installed package and safe to call."""
        return foreign_code(config.target, config.kwargs, importing)

    def load(self) -> FloatModel:
        """Call the function; raises ``InputError`` if it cannot be imported, raises, or returns no module."""
        from torch import nn

        config = self.config
        make = resolve(config.target)
        try:
            module = seeded_weights(lambda: make(**config.kwargs))
        except Terminated:
            raise
        except (Exception, SystemExit, GeneratorExit) as error:  # the user's own code
            said = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else f"it raised {ending(error)}"
            raise InputError(
                f"{config.target} failed with {config.kwargs}: {said}",
                where=config.target,
                fix="check model.kwargs and the function",
            ) from error
        if not isinstance(module, nn.Module):
            raise InputError(
                f"{config.target} returned {type(module).__name__}, not a torch.nn.Module",
                where=config.target,
                fix="set model.target to a function that returns the model",
            )
        note = f"no checkpoint_path is set, so the weights are those that {config.target} returned"
        if config.checkpoint_path is not None:
            from qplug.models.checkpoint import load

            classes = "let model.kwargs make a model of {} classes"
            note = load(module, Path(config.checkpoint_path).expanduser(), config.target, classes=classes)
        if config.task == "detection":
            return _detector(module, config, note)
        prepared = preprocessing(module, config.preprocessing)
        return FloatModel.of(module, config.target, prepared, note, config.task)

    def key(self) -> dict[str, Any]:
        """The base key with the code of the function's top-level package; files named in ``kwargs`` are not read."""
        return super().key() | _timm() | {"code": code_digest(self.config.target.partition(":")[0])}


def _embedded_detector(module: nn.Module, config: ZooModel.Config, note: str) -> FloatModel:
    from qplug.data.shapes import SIDE
    from qplug.models.detector_interface import FLOAT_PARTS, settle_detector

    if config.task != "classification":
        what = f"{config.name} detects objects, and has no {config.task} of an image"
        raise InputError(what, where="model.task", fix="leave task out")
    prepared, task = settle_detector(module, (SIDE, SIDE))
    return FloatModel.of(module, config.name, prepared, "; ".join(filter(None, (note, FLOAT_PARTS))), task=task)


def _detector(module: nn.Module, config: ImportedModel.Config, note: str) -> FloatModel:
    """A detector of torchvision, or built from its parts; of its preprocessing only the canvas can be set."""
    from qplug.models.detector_interface import FLOAT_PARTS, is_torchvision_detector, settle_detector

    if not is_torchvision_detector(module):
        raise InputError(
            f"{config.target} returned a {type(module).__name__}, which has no transform as torchvision's detectors",
            where="model.task",
            fix="bring the model by a plugin: a qplug.ModelSource, and a task that decodes its outputs (qplug_tasks)",
        )
    given = config.preprocessing.model_dump(exclude_none=True)
    size = given.pop("input_size", None)
    if given:
        what = f"a detector of torchvision normalizes and resizes by itself, and {', '.join(given)} would do nothing"
        raise InputError(what, where="model.preprocessing", fix="set input_size alone: the canvas of all images")
    prepared, task = settle_detector(module, size[1:] if size else None)
    return FloatModel.of(module, config.target, prepared, f"{note}; {FLOAT_PARTS}", task=task)


def preprocessing(module: nn.Module, config: PreprocessingConfig) -> Preprocessing:
    """The model's own configuration, updated by the recipe's; raises ``InputError`` if a value is in neither."""
    values: dict[str, Any] = {}
    if getattr(module, "pretrained_cfg", None):
        from timm.data import resolve_model_data_config

        values = resolve_model_data_config(module)
    values |= config.model_dump(exclude_none=True)
    values.setdefault("crop_mode", "center")
    missing = [name for name in PreprocessingConfig.model_fields if name not in values]
    if missing:
        raise InputError(
            "the model has no complete preprocessing configuration",
            where="model.preprocessing",
            fix=f"set {', '.join(missing)}",
        )
    channels = values["input_size"][0]
    for name in ("mean", "std"):
        if len(values[name]) != channels:
            raise InputError(
                f"preprocessing.{name} has {len(values[name])} values for {channels} channels",
                where=f"model.preprocessing.{name}",
                fix=f"set {channels} values",
            )
    return Preprocessing(
        input_size=tuple(values["input_size"]),
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
        interpolation=values["interpolation"],
        crop_pct=values["crop_pct"],
        crop_mode=values["crop_mode"],
    )


def timm_name(name: str) -> str:
    """timm's own name of a model that is named as Hugging Face's hub shows it: ``hf-hub:timm/resnet18.a1_in1k``.

    Raises:
        InputError: the name is that of another organization on the hub.
    """
    for prefix in HUB_PREFIXES:
        name = name.removeprefix(prefix)
    owner, slash, model = name.strip("/").rpartition("/")
    if slash and owner != "timm":
        raise InputError(
            f"expected a name of timm, received '{name}' of another owner on the hub",
            where="model.name",
            fix="download its weights, and give timm's name of the architecture with checkpoint_path",
        )
    return model


def _timm_config(name: str) -> Any:
    """timm's configuration of the model ``name``; raises ``InputError`` that suggests similar names."""
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


def seeded_weights(make: Callable[[], Any]) -> Any:
    """Call ``make`` with a fixed seed, so that initial weights are equal in every run; restore the generators."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()
