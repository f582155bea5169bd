"""Folders in the layout of transformers' ``save_pretrained``: fetched, and read without running their code."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplug.core.component import ModelSource
from qplug.core.errors import InputError

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def model_folder(source: ModelSource, path: str, revision: str | None, names: Sequence[str]) -> Path:
    """The local folder, or the folder of the hub's snapshot, which is downloaded unless it is cached.

    Args:
        source: of the model; its missing packages are an error.
        path: a folder, or a model's name on the hub.
        revision: of a model on the hub; ``None`` is the newest.
        names: patterns of the files to fetch.

    Raises:
        InputError: a package is missing, ``path`` is a file, or the snapshot could not be fetched.
    """
    for extra in source.needs:
        if extra.missing:
            what = f"model source '{source.name()}' needs the package '{extra.module}'"
            raise InputError(what, fix=extra.install)
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError("is a file, not a folder", where=str(folder))
    return _fetched(path, revision, tuple(names))


@functools.cache
def _fetched(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """The folder of a hub model's snapshot, downloaded unless it is cached; raises ``InputError``."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # the name, the hub and the network raise different types
        raise InputError(
            f"the folder does not exist, and no model of this name could be fetched ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]})",
            where=name,
            fix="give the path of a folder with config.json, tokenizer.json and model.safetensors",
        ) from error


def read_config(folder: Path, where: str) -> Any:
    """The folder's configuration; raises ``InputError``, which names the model as ``where``."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a missing file, invalid JSON and an unknown architecture raise different types
        what = f"config.json cannot be read: {' '.join(str(error).split())[:300]}"
        raise InputError(what, where=where) from error


def read_model(
    folder: Path, model_class: Any, config: Any, where: str, **arguments: Any
) -> tuple[nn.Module, dict[str, list[str]]]:
    """The model with the folder's weights in float32, and transformers' report of the names of tensors.

    Args:
        folder: holds the weights, in safetensors.
        model_class: of transformers.
        config: of the model.
        where: names the model in errors.
        arguments: of the model's class.

    Returns:
        The model, and lists of names by ``missing_keys``, ``mismatched_keys`` and ``unexpected_keys``.

    Raises:
        InputError: the weights cannot be read.
    """
    with quiet():
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
                **arguments,
            )
        except Exception as error:  # missing, truncated and mismatched files raise different types
            raise InputError(
                f"the weights cannot be read: {' '.join(str(error).split())[:300]}",
                where=where,
                fix="give a folder with model.safetensors, as save_pretrained writes it",
            ) from error
    kinds = ("missing_keys", "mismatched_keys", "unexpected_keys")
    return module, {kind: sorted(str(name) for name in found[kind]) for kind in kinds}


def tokenizer_of(folder: Path) -> Any:
    """The folder's tokenizer, which must be one of the ``tokenizers`` library; raises ``InputError``."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer.backend_tokenizer.to_str()
    except Exception as error:  # a missing file, invalid JSON and another kind of tokenizer raise different types
        raise InputError(
            f"the tokenizer cannot be read: {' '.join(str(error).split())[:300]}",
            where=str(folder),
            fix="the folder must hold tokenizer.json, or vocab.txt",
        ) from error
    return tokenizer


@contextmanager
def quiet() -> Iterator[None]:
    """Context without transformers' progress bars and reports of keys; ``load`` turns the latter into errors."""
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
