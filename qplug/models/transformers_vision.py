"""Image models of Hugging Face transformers. Importing this module imports neither torch nor transformers."""

from __future__ import annotations

import importlib.metadata
import inspect
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from qplug.core.component import Config, ModelSource
from qplug.core.errors import InputError
from qplug.core.storage.hashing import file_digest
from qplug.core.text import listed
from qplug.core.types import Extra
from qplug.models import class_embeddings
from qplug.models.float_model import FloatModel
from qplug.models.image_processor import FILE, ImageProcessor
from qplug.models.pretrained import WEIGHTS, model_folder, quiet, read_config, read_model, tokenizer_of
from qplug.models.sources import PreprocessingConfig, preprocessing, seeded_weights
from qplug.models.transformers import NEEDED

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qplug.core.task import Task
    from qplug.data.preparation import Preparation

READ = ("config.json", FILE)
"""Files of a model's folder that every task reads."""
VisionTask = Literal["features", "semantic_segmentation"]


class TransformersVisionModel(ModelSource):
    """An image model of transformers: an encoder without a head, such as CLIP, SigLIP, DINOv2, SAM's or ``ViTModel``,
    or a model for semantic segmentation, such as SegFormer and UperNet.

    The folder has the layout of ``save_pretrained``, with the image processor's ``preprocessor_config.json``. Weights
    are only read from safetensors, and no code of the folder is run. Of a model with a vision and a text tower, the
    vision tower is taken, with its projection if it has one. A run folder stores the configurations and the class
    embeddings, so that it does not need the original folder.
    """

    needs = (Extra("transformers", "pip install 'qplug[nlp]'"),)

    class Config(Config):
        """``model: {source: transformers_vision, path: …/clip-vit-base-patch32, task: features}``."""

        source: Literal["transformers_vision"]
        path: str = Field(min_length=1, description="a folder, or a model's name on the Hugging Face hub")
        revision: str | None = Field(
            default=None, min_length=1, description="revision of a model on the hub; the newest if unset"
        )
        task: VisionTask = Field(description="what the outputs are")
        output: str | None = Field(
            default=None,
            min_length=1,
            description="for features: the field of the model's outputs, or first_token; by default the first of "
            "image_embeds, pooler_output and last_hidden_state that the model returns",
        )
        class_embeddings: str | None = Field(
            default=None,
            min_length=1,
            description="for zero-shot top-1: .npy or .safetensors of (classes, C), row i for label i",
        )
        prompts: str | None = Field(
            default=None,
            min_length=1,
            description="likewise: text file of one prompt a line, line i for label i, for the text tower of the same "
            "folder",
        )
        preprocessing: PreprocessingConfig | None = Field(
            default=None, description="preparation of images in place of the folder's image processor"
        )

        @model_validator(mode="after")
        def _one_head(self) -> TransformersVisionModel.Config:
            if self.class_embeddings is not None and self.prompts is not None:
                raise ValueError("'class_embeddings' and 'prompts' both define the classes; give one")
            features = {"output": self.output, "class_embeddings": self.class_embeddings, "prompts": self.prompts}
            given = [name for name, value in features.items() if value is not None]
            if self.task != "features" and given:
                raise ValueError(f"'{given[0]}' is an option of 'task: features'")
            return self

    def load(self) -> FloatModel:
        """Read the model; raises ``InputError`` for an invalid folder, architecture or checkpoint."""
        folder = self._folder(weights=True)
        model_class, config = self._class(folder)
        kwargs = pooling(model_class, config, folder)
        note = "the checkpoint has no pooler, so the model is built without one" if kwargs else ""
        module, found = read_model(folder, model_class, config, self.config.path, **kwargs)
        if missing := [*found["missing_keys"], *found["mismatched_keys"]]:
            raise InputError(
                f"the weights are not of a {model_class.__name__}: missing {listed(sorted(missing), 4)}",
                where=self.config.path,
                fix="give the folder of a model of this task, or of one whose vision tower transformers reads alone",
            )
        if unused := found["unexpected_keys"]:
            left = f"{len(unused)} tensors of the checkpoint are not part of the encoder, such as {unused[0]}"
            note = "; ".join(filter(None, [note, left]))
        return self._float_model(module, folder, self._classes_by(folder), note)

    def architecture(self) -> FloatModel:
        """The model of the folder's configuration, with random weights."""
        folder = self._folder(weights=False)
        model_class, config = self._class(folder)
        config._attn_implementation = "eager"
        stored = folder / class_embeddings.FILE
        classes_by = class_embeddings.from_text(stored) if stored.is_file() else None
        kwargs = pooling(model_class, config, folder)
        return self._float_model(seeded_weights(lambda: model_class(config, **kwargs)), folder, classes_by)

    def key(self) -> dict[str, Any]:
        """The configuration, with digests of the files in place of paths, and versions of the reading packages."""
        config, folder = self.config, self._folder(weights=True)
        values: dict[str, Any] = config.model_dump(mode="json", exclude={"path", "class_embeddings", "prompts"})
        names = [*READ, *(NEEDED if config.prompts else ())]
        files = [folder / name for name in dict.fromkeys(names) if (folder / name).is_file()]
        files += [path for pattern in WEIGHTS for path in sorted(folder.glob(pattern))]
        given = [Path(path).expanduser() for path in (config.class_embeddings, config.prompts) if path is not None]
        versions = {name: importlib.metadata.version(name) for name in ("transformers", "timm")}
        digests = {path.name: file_digest(path) for path in (*files, *given)}
        return values | versions | {"files": digests}

    def files(self) -> dict[str, str]:
        """Configuration, image processor and class embeddings."""
        folder, found = self._folder(weights=True), {}
        model_class, config = self._class(folder)
        config.architectures = [model_class.__name__]
        config.qplug_pooler = not pooling(model_class, config, folder)  # a run folder has no checkpoint to look into
        with tempfile.TemporaryDirectory() as target, quiet():
            config.save_pretrained(target)
            found["config.json"] = (Path(target) / "config.json").read_text(encoding="utf-8")
        if (folder / FILE).is_file():
            found[FILE] = (folder / FILE).read_text(encoding="utf-8")
        classes_by = self._classes_by(folder)
        return found if classes_by is None else found | {class_embeddings.FILE: class_embeddings.to_text(classes_by)}

    def kept_in(self, folder: Path) -> TransformersVisionModel:
        """The model whose configuration is in ``folder``."""
        return type(self)(self.config.model_copy(update={"path": str(folder), "revision": None}))

    def _float_model(self, module: nn.Module, folder: Path, classes_by: Tensor | None, note: str = "") -> FloatModel:
        from qplug.core.task import TASKS, Features
        from qplug.models.image_encoders import ImageEncoder

        features = self.config.task == "features"
        wrapped = ImageEncoder(module, self.config.output if features else "logits")
        task: Task = Features(classes_by=classes_by) if features else TASKS[self.config.task]
        name = Path(self.config.path).name
        return FloatModel.of(wrapped, name, self._preparation(wrapped, folder), note, task=task)

    def _preparation(self, module: nn.Module, folder: Path) -> Preparation:
        if self.config.preprocessing is None:
            return ImageProcessor.of(folder, self.config.path)
        return preprocessing(module, self.config.preprocessing)

    def _classes_by(self, folder: Path) -> Tensor | None:
        """The embeddings of the classes, from a file or by the text tower."""
        config = self.config
        if config.class_embeddings is not None:
            return class_embeddings.read_embeddings(Path(config.class_embeddings).expanduser())
        if config.prompts is None:
            return None
        from transformers import AutoModel

        prompts = class_embeddings.read_prompts(Path(config.prompts).expanduser())
        with quiet():
            whole = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype="float32")
        if not hasattr(whole, "get_text_features"):
            raise InputError(
                f"prompts need the text tower of the same folder, and it holds a {type(whole).__name__}",
                where="model.prompts",
                fix="give the folder of the whole CLIP or SigLIP model, or class_embeddings",
            )
        return class_embeddings.embed(whole.eval(), tokenizer_of(folder), prompts)

    def _class(self, folder: Path) -> tuple[Any, Any]:
        """transformers' class of the encoder, and its configuration."""
        config = read_config(folder, self.config.path)
        features = self.config.task == "features"
        found = encoder_class(config) if features else segmentation_class(config)
        if found is None:
            kind = "image encoder" if features else "model for semantic segmentation"
            raise InputError(
                f"transformers has no {kind} for a {config.model_type}",
                where=self.config.path,
                fix="give the folder of another model; for another architecture use source: import",
            )
        if found.config_class is not type(config) and hasattr(config, "vision_config"):
            width = getattr(config, "projection_dim", None)
            config = config.vision_config
            if width is not None:  # the projection is that of the whole model
                config.projection_dim = width
        return found, config

    def _folder(self, weights: bool) -> Path:
        names = (*NEEDED, *READ, *(WEIGHTS if weights else ()))
        return model_folder(self, self.config.path, self.config.revision, names)


def pooling(model_class: Any, config: Any, folder: Path) -> dict[str, Any]:
    """The argument that leaves the pooler out where the checkpoint has none; empty otherwise."""
    from safetensors import SafetensorError, safe_open

    if "add_pooling_layer" not in inspect.signature(model_class.__init__).parameters:
        return {}
    stored = getattr(config, "qplug_pooler", None)
    if stored is None:
        names: list[str] = []
        for path in folder.glob("*.safetensors"):
            with suppress(OSError, SafetensorError), safe_open(path, framework="pt") as file:  # reading it says why
                names += file.keys()
        stored = any("pooler." in name for name in names) or not names
    return {} if stored else {"add_pooling_layer": False}


def segmentation_class(config: Any) -> Any:
    """transformers' class for semantic segmentation of a configuration; ``None`` if there is none."""
    import transformers

    try:
        return transformers.AutoModelForSemanticSegmentation._model_mapping[type(config)]
    except KeyError:
        return None


def encoder_class(config: Any) -> Any:
    """transformers' class of the image encoder of a configuration; ``None`` if there is none.

    Of a model of two towers it is the vision tower, with its projection if it has one.
    """
    import transformers

    for name in config.architectures or ():
        own = getattr(transformers, name, None)
        if own is not None and "Vision" in name and getattr(own, "main_input_name", "") == "pixel_values":
            return own
    if hasattr(config, "vision_config"):
        family = type(config).__name__.removesuffix("Config")
        for suffix in ("VisionModelWithProjection", "VisionModel"):
            if (tower := getattr(transformers, family + suffix, None)) is not None:
                return tower
        return None
    try:
        found = transformers.AutoModel._model_mapping[type(config)]
    except KeyError:
        return None
    return found if getattr(found, "main_input_name", "") == "pixel_values" else None
