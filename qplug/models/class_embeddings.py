"""Embeddings of classes for zero-shot classification: from a file, or from prompts through the text encoder."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplug.core.errors import InputError
from qplug.core.storage.plain_file import require_file
from qplug.core.text import listed

if TYPE_CHECKING:
    from torch import Tensor

FILE = "class_embeddings.txt"
"""Name in a run folder: the embeddings as safetensors, in base64, since a source stores text files."""


def read_embeddings(path: Path) -> Tensor:
    """(classes, C) float32 from a .npy file, or from the only tensor of a .safetensors file; row i is label i.

    Raises ``InputError`` for another file, a tensor of another shape, or values that are not finite.
    """
    require_file(path, "file of class embeddings")
    if path.suffix not in (".npy", ".safetensors"):
        what = f"expected class embeddings in a .npy or .safetensors file, received '{path.suffix}'"
        raise InputError(what, where=str(path), fix="save an array (classes, C), one row for each label")
    try:
        found = _npy(path) if path.suffix == ".npy" else _safetensors(path)
    except InputError:
        raise
    except Exception as error:  # damaged files raise many types
        raise InputError(f"the class embeddings cannot be read: {error}", where=str(path)) from error
    if found.dim() != 2 or not found.is_floating_point() or not bool(found.isfinite().all()):
        raise InputError(
            f"expected finite numbers (classes, C), received {tuple(found.shape)} {found.dtype}",
            where=str(path),
            fix="save one row for each label, in the order of the labels",
        )
    return found.float()


def _npy(path: Path) -> Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.load(path, allow_pickle=False))


def _safetensors(path: Path) -> Tensor:
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(path)
    if len(tensors) != 1:
        raise InputError(
            f"expected one tensor, received {len(tensors)}: {listed(tensors)}",
            where=str(path),
            fix="save the class embeddings alone",
        )
    return next(iter(tensors.values()))


def read_prompts(path: Path) -> list[str]:
    """One prompt a line, in the order of the labels; raises ``InputError`` for an empty line or a damaged file."""
    require_file(path, "file of prompts")
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the prompts cannot be read: {error}", where=str(path)) from error
    empty = next((index for index, line in enumerate(lines, start=1) if not line.strip()), None)
    if empty is not None:
        what = "an empty line would shift the labels of the classes after it"
        raise InputError(what, where=f"{path}:{empty}", fix="give one prompt a line, in the order of the labels")
    return [line.strip() for line in lines]


def embed(model: Any, tokenizer: Any, prompts: list[str]) -> Tensor:
    """(prompts, C) float32: the text features of a whole CLIP or SigLIP model of transformers."""
    import torch

    tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        found = model.get_text_features(**tokens)
    found = found if isinstance(found, torch.Tensor) else found.pooler_output
    return found.float().cpu()


def to_text(embeddings: Tensor) -> str:
    """The content of ``FILE``."""
    from safetensors.torch import save

    return base64.b64encode(save({"embeddings": embeddings.contiguous()})).decode("ascii")


def from_text(path: Path) -> Tensor:
    """The embeddings of ``FILE``, whose digest the reader of the run folder has checked."""
    from safetensors.torch import load

    tensors: dict[str, Tensor] = load(base64.b64decode(path.read_text(encoding="ascii")))
    return tensors["embeddings"]
