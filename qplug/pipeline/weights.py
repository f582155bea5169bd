"""The weights of a run folder: quantized ones as packed codes, all others as they are."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qplug.core.errors import InputError
from qplug.core.storage.bit_packing import pack_bits, unpack_bits
from qplug.core.storage.hashing import fingerprint
from qplug.core.storage.run_folder import AGAIN
from qplug.core.text import listed
from qplug.quantization.plan import Decision, Plan
from qplug.quantization.quantizers import Quantizer

if TYPE_CHECKING:
    from qplug.core.storage.run_folder import RunFolder

FILE = "model.safetensors"
CODES = ".codes"
"""Suffix of the name of a weight that is stored as codes, (⌈n·bits/8⌉,) uint8; see ``pack_bits``."""
FINGERPRINT = "fingerprint"
"""Key of the file's metadata: ``fingerprint`` of its tensors."""


def write_weights(folder: RunFolder, model: nn.Module, plan: Plan) -> list[str]:
    """Write ``model.safetensors``; returns a warning for weights of the plan that stay in float.

    A weight is stored as codes of its bits if they decode, bit for bit, to its quantized value, and if quantizing that
    value again does not change it. Scales are in ``plan.json`` alone.

    Args:
        folder: the run folder in progress.
        model: the float model, after rewrites and smoothing.
        plan: of that model.
    """
    state: dict[str, Tensor] = model.state_dict()
    holders = Counter(tensor.untyped_storage().data_ptr() for tensor in state.values())
    codes: dict[str, Tensor] = {}
    left: dict[str, list[str]] = {}
    for name, quantizer in ((decision.site.name, decision.quantizer) for decision in _weights(plan)):
        try:
            if name not in state:
                raise ValueError("the model holds it under another name")
            if holders[state[name].untyped_storage().data_ptr()] > 1:
                raise ValueError("another name shares it")
            codes[name] = _codes(state[name], quantizer)
        except Exception as error:  # a plugin's quantizer must not end a run that is all but finished
            left.setdefault(str(error) or type(error).__name__, []).append(name)
    tensors = {name + CODES if name in codes else name: codes.get(name, one) for name, one in state.items()}
    folder.write_tensors(FILE, tensors, {FINGERPRINT: fingerprint(tensors)})
    return [_warning(names, reason) for reason, names in left.items()]


def read_weights(path: Path, plan: Plan) -> dict[str, Tensor]:
    """The state dict that ``path`` stands for under ``plan``, codes decoded, on the CPU.

    Raises:
        InputError: the file cannot be read, is damaged, or holds codes that do not belong to the plan.
    """
    tensors = _read(path)
    for decision in _weights(plan):
        name, bits = decision.site.name, decision.quantizer.bits
        if name + CODES not in tensors:
            continue
        try:
            codes = unpack_bits(tensors.pop(name + CODES), bits, decision.site.shape)
            values = copy.deepcopy(decision.quantizer).cpu().decode(codes)
            if values.shape != codes.shape:
                raise ValueError(f"a weight of {tuple(codes.shape)} was expected, received {tuple(values.shape)}")
        except (IndexError, RuntimeError, ValueError) as error:
            what = f"{name} does not belong to plan.json ({decision.quantizer.describe()}): {error}"
            raise InputError(what, where=str(path), fix=AGAIN) from error
        tensors[name] = values
    return tensors


def load_weights(model: nn.Module, path: Path, plan: Plan) -> None:
    """Load the weights of a run folder into ``model``, which is rewritten as in the run and not quantized yet.

    Parameters that smoothing added, such as the bias of a linear without one, are added again.

    Raises:
        InputError: as ``read_weights``; a tensor is missing, unknown, or of another shape.
    """
    weights = read_weights(path, plan)
    for name in weights.keys() - model.state_dict().keys():
        _make(model, name, weights[name])
    if problems := _misfits(model.state_dict(), weights):
        raise InputError(
            f"does not fit the model that the recipe names: {listed(problems, 5)}",
            where=str(path),
            fix=f"{AGAIN}, or install the versions of timm and of the model's code that lock.json lists",
        )
    model.load_state_dict(weights)


def _weights(plan: Plan) -> list[Decision]:
    return [decision for decision in plan if decision.site.kind.is_weight]


def _codes(weight: Tensor, quantizer: Quantizer) -> Tensor:
    """The packed codes of ``weight``; raises ``ValueError`` if they do not decode to the quantized weight."""
    quantizer = copy.deepcopy(quantizer).to(weight.device)
    codes, expected = quantizer.encode(weight), quantizer.infer(weight)
    packed = pack_bits(codes, quantizer.bits)
    values = quantizer.decode(unpack_bits(packed, quantizer.bits, tuple(weight.shape)))
    if values.dtype != weight.dtype or not torch.equal(values, expected):
        raise ValueError(f"{type(quantizer).__name__}'s codes do not give back its values")
    if not torch.equal(quantizer.infer(values), expected):
        raise ValueError(f"{type(quantizer).__name__} does not leave its values as they are")
    return packed


def _warning(names: list[str], reason: str) -> str:
    count = f"{len(names)} quantized weight{'s' if len(names) > 1 else ''}"
    return f"{FILE} holds {count} in float32, which size_mb does not count ({listed(names)}): {reason}"


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path), fix=AGAIN) from error
    if metadata.get(FINGERPRINT) != fingerprint(tensors):
        raise InputError("is damaged: its tensors are not those that were written", where=str(path), fix=AGAIN)
    return tensors


def _make(model: nn.Module, name: str, like: Tensor) -> None:
    """Add a parameter for which ``model`` has a place and no value."""
    path, _, leaf = name.rpartition(".")
    module = dict(model.named_modules()).get(path)
    if module is not None and leaf in module._parameters and module._parameters[leaf] is None:
        setattr(module, leaf, nn.Parameter(torch.empty_like(like), requires_grad=False))


def _misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    problems = [f"{name} is missing" for name in wanted if name not in given]
    problems += [f"{name} is unknown to it" for name in given if name not in wanted]
    return problems + [
        f"{name} is {tuple(given[name].shape)}, and {tuple(wanted[name].shape)} in the model"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
