"""BERT and DistilBERT of Hugging Face transformers. Importing this module imports neither torch nor transformers."""

from __future__ import annotations

import functools
import importlib.metadata
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from qplug.core.component import Config, ModelSource
from qplug.core.errors import InputError
from qplug.core.storage.hashing import file_digest
from qplug.core.types import Extra
from qplug.models.float_model import FloatModel
from qplug.models.sources import seeded
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
"""What of a model's folder is read beside its weights."""
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


class TransformersModel(ModelSource):
    """BERT or DistilBERT, fine-tuned to classify sequences or to answer questions.

    The folder is laid out as ``save_pretrained`` writes it. Weights are read from safetensors alone, and no code of the
    folder is run. A run folder keeps configuration and tokenizer, so that it needs the folder no more.
    """

    needs = (Extra("transformers", "pip install 'qplug[nlp]'"),)

    class Config(Config):
        """``model: {source: transformers, path: …/bert-mnli, task: sequence_classification, max_length: 128}``."""

        source: Literal["transformers"]
        path: str = Field(min_length=1, description="a folder, or a model's name on the Hugging Face hub")
        revision: str | None = Field(
            default=None, min_length=1, description="of a model on the hub; its newest if unset"
        )
        task: TextTask = Field(description="what its head does")
        max_length: int = Field(
            ge=8, le=4096, description="tokens of an input: longer texts are cut, shorter ones padded"
        )

    def load(self) -> FloatModel:
        """Read the model; raises ``InputError`` for a folder, an architecture or weights that cannot be used."""
        folder = self._folder(weights=True)
        model_class, config = self._class(folder)
        with _quiet():
            try:
                module, found = model_class.from_pretrained(
                    folder,
                    config=config,
                    local_files_only=True,
                    use_safetensors=True,
                    trust_remote_code=False,
                    attn_implementation="eager",
                    dtype="float32",
                    output_loading_info=True,
                )
            except Exception as error:  # files that are missing, cut short or of other shapes fail in several ways
                raise InputError(
                    f"the weights cannot be read: {' '.join(str(error).split())[:300]}",
                    where=self.config.path,
                    fix="give a folder with model.safetensors, as save_pretrained writes it",
                ) from error
        for problem in ("missing_keys", "mismatched_keys"):
            if names := [str(name) for name in found[problem]]:
                raise InputError(
                    f"the weights are not of a {model_class.__name__}: {problem.replace('_', ' ')} "
                    f"{', '.join(sorted(names)[:4])}{', …' if len(names) > 4 else ''}",
                    where=self.config.path,
                    fix=f"give a model that was trained for task: {self.config.task}, or set the task that it has",
                )
        unused = sorted(found["unexpected_keys"])
        note = (
            f"{len(unused)} tensors of the checkpoint are no part of the model, such as {unused[0]}" if unused else ""
        )
        return self._float_model(module, folder, note)

    def architecture(self) -> FloatModel:
        """The model of the folder's configuration, with random weights."""
        folder = self._folder(weights=False)
        model_class, config = self._class(folder)
        config._attn_implementation = "eager"
        return self._float_model(seeded(lambda: model_class(config)), folder)

    def key(self) -> dict[str, Any]:
        """With the content of every file in the place of the path, and the versions of what reads them."""
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
        with tempfile.TemporaryDirectory() as target, _quiet():
            self._class(folder)[1].save_pretrained(target)
            _tokenizer(folder).save_pretrained(target)
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
                f"the model has places for {longest} tokens, and max_length is {self.config.max_length}",
                where=self.config.path,
                fix=f"set max_length to at most {longest}",
            )
        tokenizer = _tokenizer(folder)
        if tokenizer.pad_token is None:
            raise InputError("the tokenizer has no padding token", where=self.config.path)
        words = len(tokenizer)
        if words > config.vocab_size:
            raise InputError(
                f"the tokenizer has {words} tokens, and the model {config.vocab_size} embeddings",
                where=self.config.path,
                fix="put the tokenizer that the model was trained with into the folder",
            )
        answers = self.config.task == "question_answering"
        wrapped = (QuestionAnswerer if answers else SequenceClassifier)(module, token_types=config.model_type == "bert")
        how = Tokenization(
            tokenizer.backend_tokenizer.to_str(), self.config.max_length, self.config.task, tokenizer.pad_token
        )
        task_name = "question_answering" if answers else "classification"
        return FloatModel.of(wrapped, Path(self.config.path).name, how, note, task_name)

    def _class(self, folder: Path) -> tuple[Any, Any]:
        """transformers' class for the task, and the configuration, with its feed-forward in one piece."""
        import transformers

        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # no file, no JSON, no architecture that is known
            raise InputError(
                f"config.json cannot be read: {' '.join(str(error).split())[:300]}", where=self.config.path
            ) from error
        name = CLASSES.get((config.model_type, self.config.task))
        if name is None or getattr(config, "is_decoder", False):
            kind = f"{config.model_type}{' as a decoder' if name else ''}"
            raise InputError(
                f"the model is a {kind}, and this source knows the encoders bert and distilbert",
                where=self.config.path,
                fix="for another architecture, write a model source: qplug.ModelSource",
            )
        config.chunk_size_feed_forward = 0  # pieces save memory in training, and would call every linear several times
        return getattr(transformers, name), config

    def _folder(self, weights: bool) -> Path:
        """The folder, or that of the hub's snapshot, which is fetched where the cache lacks it."""
        for extra in self.needs:
            if extra.missing:
                raise InputError(f"model source 'transformers' needs the package '{extra.module}'", fix=extra.install)
        folder = Path(self.config.path).expanduser()
        if folder.is_dir():
            return folder
        if folder.exists():
            raise InputError("is a file, not a folder", where=str(folder))
        return _fetched(self.config.path, self.config.revision, (*NEEDED, *(WEIGHTS if weights else ())))


@functools.cache
def _fetched(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # the name, the hub and the network each fail in their own way
        raise InputError(
            f"is no folder, and no model of this name could be fetched ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]})",
            where=name,
            fix="give the path of a folder with config.json, tokenizer.json and model.safetensors",
        ) from error


def _tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, of the kind that ``tokenizers`` computes; raises ``InputError``."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer.backend_tokenizer.to_str()
    except Exception as error:  # no file, no JSON, a tokenizer of another kind
        raise InputError(
            f"the tokenizer cannot be read: {' '.join(str(error).split())[:300]}",
            where=str(folder),
            fix="the folder must hold tokenizer.json, or vocab.txt",
        ) from error
    return tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it, transformers draws no bars and reports no keys: what matters of them is an error or a note."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
