"""BERT and DistilBERT of Hugging Face transformers. Importing this module imports neither torch nor transformers."""

from __future__ import annotations

import importlib.metadata
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from qplug.core.component import Config, ModelSource
from qplug.core.errors import InputError
from qplug.core.storage.hashing import file_digest
from qplug.core.text import listed
from qplug.core.types import Extra
from qplug.models.float_model import FloatModel
from qplug.models.pretrained import WEIGHTS, model_folder, quiet, read_config, read_model, tokenizer_of
from qplug.models.sources import seeded_weights
from qplug.models.tokens import TextTask, Tokenization

if TYPE_CHECKING:
    from torch import nn

CLASSES = {
    ("bert", "sequence_classification"): "BertForSequenceClassification",
    ("bert", "question_answering"): "BertForQuestionAnswering",
    ("distilbert", "sequence_classification"): "DistilBertForSequenceClassification",
    ("distilbert", "question_answering"): "DistilBertForQuestionAnswering",
}
NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
"""The files of a model's folder that are read, except its weights."""


class TransformersModel(ModelSource):
    """BERT or DistilBERT, fine-tuned for sequence classification or question answering.

    The folder has the layout of ``save_pretrained``. Weights are only read from safetensors, and no code of the folder
    is run. A run folder stores configuration and tokenizer, so that it does not need the original folder.
    """

    needs = (Extra("transformers", "pip install 'qplug[nlp]'"),)

    class Config(Config):
        """``model: {source: transformers, path: …/bert-mnli, task: sequence_classification, max_length: 128}``."""

        source: Literal["transformers"]
        path: str = Field(min_length=1, description="a folder, or a model's name on the Hugging Face hub")
        revision: str | None = Field(
            default=None, min_length=1, description="revision of a model on the hub; the newest if unset"
        )
        task: TextTask = Field(description="task of the model's head")
        max_length: int = Field(
            ge=8, le=4096, description="number of tokens of an input: longer texts are cut, shorter ones padded"
        )

    def load(self) -> FloatModel:
        """Read the model; raises ``InputError`` for an invalid folder, architecture or checkpoint."""
        folder = self._folder(weights=True)
        model_class, config = self._class(folder)
        module, found = read_model(folder, model_class, config, self.config.path)
        for problem in ("missing_keys", "mismatched_keys"):
            if names := found[problem]:
                raise InputError(
                    f"the weights are not of a {model_class.__name__}: {problem.replace('_', ' ')} {listed(names, 4)}",
                    where=self.config.path,
                    fix=f"give a model that was trained for task: {self.config.task}, or set task to that of the model",
                )
        unused = found["unexpected_keys"]
        note = (
            f"{len(unused)} tensors of the checkpoint are not part of the model, such as {unused[0]}" if unused else ""
        )
        return self._float_model(module, folder, note)

    def architecture(self) -> FloatModel:
        """The model of the folder's configuration, with random weights."""
        folder = self._folder(weights=False)
        model_class, config = self._class(folder)
        config._attn_implementation = "eager"
        return self._float_model(seeded_weights(lambda: model_class(config)), folder)

    def key(self) -> dict[str, Any]:
        """Task and ``max_length``, digests of the files in place of the path, and versions of the reading packages."""
        values: dict[str, Any] = {
            "source": "transformers",
            "task": self.config.task,
            "max_length": self.config.max_length,
        }
        folder = self._folder(weights=True)
        files = [folder / name for name in NEEDED if (folder / name).is_file()]
        files += [path for pattern in WEIGHTS for path in sorted(folder.glob(pattern))]
        versions = {name: importlib.metadata.version(name) for name in ("transformers", "tokenizers")}
        return values | versions | {"files": {path.name: file_digest(path) for path in files}}

    def files(self) -> dict[str, str]:
        """Configuration and tokenizer, as ``save_pretrained`` writes them."""
        folder = self._folder(weights=False)
        with tempfile.TemporaryDirectory() as target, quiet():
            self._class(folder)[1].save_pretrained(target)
            tokenizer_of(folder).save_pretrained(target)
            return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(target).iterdir())}

    def kept_in(self, folder: Path) -> TransformersModel:
        """The model whose configuration and tokenizer are in ``folder``."""
        return type(self)(self.config.model_copy(update={"path": str(folder), "revision": None}))

    def _float_model(self, module: nn.Module, folder: Path, note: str = "") -> FloatModel:
        from qplug.models.text_models import QuestionAnswerer, SequenceClassifier

        config: Any = module.config
        longest = config.max_position_embeddings
        if self.config.max_length > longest:
            raise InputError(
                f"the model has positions for {longest} tokens, and max_length is {self.config.max_length}",
                where=self.config.path,
                fix=f"set max_length to at most {longest}",
            )
        tokenizer = tokenizer_of(folder)
        if tokenizer.pad_token is None:
            raise InputError("the tokenizer has no padding token", where=self.config.path)
        vocabulary = len(tokenizer)
        if vocabulary > config.vocab_size:
            raise InputError(
                f"the tokenizer has {vocabulary} tokens, and the model {config.vocab_size} embeddings",
                where=self.config.path,
                fix="copy the tokenizer that the model was trained with to the folder",
            )
        answers = self.config.task == "question_answering"
        wrapped = (QuestionAnswerer if answers else SequenceClassifier)(module, token_types=config.model_type == "bert")
        tokenization = Tokenization(
            tokenizer.backend_tokenizer.to_str(), self.config.max_length, self.config.task, tokenizer.pad_token
        )
        return FloatModel.of(wrapped, Path(self.config.path).name, tokenization, note, self.config.task)

    def _class(self, folder: Path) -> tuple[Any, Any]:
        """transformers' class for the task, and the configuration, without chunking of the feed-forward."""
        import transformers

        config = read_config(folder, self.config.path)
        name = CLASSES.get((config.model_type, self.config.task))
        if name is None or getattr(config, "is_decoder", False):
            kind = f"{config.model_type}{' as a decoder' if name else ''}"
            raise InputError(
                f"the model is a {kind}, and this source supports the encoders bert and distilbert",
                where=self.config.path,
                fix="for another architecture, write a model source: qplug.ModelSource",
            )
        config.chunk_size_feed_forward = 0  # chunks save memory in training, but call every linear several times
        return getattr(transformers, name), config

    def _folder(self, weights: bool) -> Path:
        names = (*NEEDED, *(WEIGHTS if weights else ()))
        return model_folder(self, self.config.path, self.config.revision, names)
