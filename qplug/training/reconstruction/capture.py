"""Inputs and outputs of one block on all calibration images, captured for one block at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from qplug.core.errors import InputError
from qplug.models.attention import MatMul
from qplug.models.batch_axes import batch_axes


@dataclass(frozen=True)
class Calls:
    """The calls of one module over all images. The tensors are on the CPU until ``to`` moves them.

    An image has one entry. If an operation processes parts of an image, such as Swin's windows, each part is an entry.
    Such entries are sampled and weighted like images. A module that computes the same for every image, from a table of
    coordinates for example, has one entry over all images.

    Attributes:
        inputs: (images · ``entries``, …), the first argument.
        outputs: (images · ``entries``, …).
        by_image: other arguments with entries for every image, by position or name: (images · ``entries``, …).
        fixed: other arguments that are equal for every batch.
        entries: entries per image.
        constant: the only entry is the same for every image, and the module's own tensors lack its axis.
    """

    inputs: Tensor
    outputs: Tensor
    by_image: dict[int | str, Tensor] = field(default_factory=dict)
    fixed: dict[int | str, Any] = field(default_factory=dict)
    entries: int = 1
    constant: bool = False

    def arguments(self, inputs: Tensor, images: Tensor) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments for the entries ``images`` (int64, on the device of the calls).

        ``inputs`` is the first argument.
        """
        others = self.fixed | {key: x[images].to(inputs.device) for key, x in self.by_image.items()}
        positions = sorted(key for key in others if isinstance(key, int))
        keywords = {key: value for key, value in others.items() if isinstance(key, str)}
        return [inputs[0] if self.constant else inputs, *(others[position] for position in positions)], keywords

    def to(self, device: torch.device) -> Calls:
        """These calls with all tensors on ``device``."""
        by_image = {key: x.to(device) for key, x in self.by_image.items()}
        return replace(self, inputs=self.inputs.to(device), outputs=self.outputs.to(device), by_image=by_image)

    @property
    def bytes(self) -> int:
        """Memory of all tensors that have entries for every image."""
        return sum(x.numel() * x.element_size() for x in (self.inputs, self.outputs, *self.by_image.values()))


class _StopForward(Exception):
    """Raised by a hook to end a forward after the captured block."""


def capture(model: nn.Module, name: str, batches: Sequence[Tensor]) -> Calls:
    """The calls of the module ``name`` when ``model`` runs on ``batches``, (B, C, H, W) each.

    Each forward ends after the module.

    Raises:
        InputError: the model does not call the module exactly once; or the first argument is no batch; or another
            argument neither has entries for every image nor is equal for every batch.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if isinstance(module, MatMul):  # a constant operand belongs to every entry of the other one
            args = (args[0].expand(len(out), *args[0].shape[1:]), *args[1:])
        images = len(batches[len(calls)])
        if not calls and images > 1 and _entries(args) == entries:
            constant.append(True)
        _check_tensors(name, args, out, entries if constant else entries * images)
        calls.append(((args[0].cpu(), *args[1:]), kwargs, out.cpu()))  # moved now: the device may not hold all batches
        raise _StopForward

    module = model.get_submodule(name)
    entries, single = _call_for_one_image(model, name, batches[0][:1])
    constant = [True] if len(batches[0]) == 1 and _is_constant(model, name, batches[0]) else []
    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad():
            for batch in batches:
                with suppress(_StopForward):
                    model(batch)
    finally:
        handle.remove()
    if constant:
        if not _is_constant(model, name, batches[0][:1]):
            raise _no_batch(name)
        return _constant_calls(name, calls)
    return Calls(
        torch.cat([args[0] for args, _, _ in calls]),
        torch.cat([out for _, _, out in calls]),
        *_split_arguments(
            name, entries, single, [(len(args[0]), _other_arguments(args, kwargs)) for args, kwargs, _ in calls]
        ),
        entries,
    )


def _constant_calls(name: str, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any], Tensor]]) -> Calls:
    """The calls of a module whose first argument is the same for every image."""
    (inputs, *_), _, outputs = calls[0]
    others = [_other_arguments(args, kwargs) for args, kwargs, _ in calls]
    if not all(_equal(outputs, out) for _, _, out in calls) or not all(_equal_all(others[0], each) for each in others):
        raise InputError(
            "the first argument of a reconstructed module is the same for every image, and its output is not",
            where=name,
        )
    return Calls(inputs.unsqueeze(0), outputs.unsqueeze(0), fixed=others[0], constant=True)


def _split_arguments(
    name: str, entries: int, single: dict[int | str, Any], calls: Sequence[tuple[int, dict[int | str, Any]]]
) -> tuple[dict[int | str, Tensor], dict[int | str, Any]]:
    """The arguments after the first, split into those with entries for every image and fixed ones.

    Args:
        name: of the module, for errors.
        entries: entries per image.
        single: these arguments in a call with one image.
        calls: (entries of the call, these arguments) for each batch.
    """
    by_image: dict[int | str, Tensor] = {}
    fixed: dict[int | str, Any] = {}
    for key, first in calls[0][1].items():
        values = [arguments[key] for _, arguments in calls]
        # A fixed tensor may have as many rows as a batch by chance. The call with one image tells the two apart.
        if _has_rows(single.get(key), entries) and all(_has_rows(arguments[key], rows) for rows, arguments in calls):
            by_image[key] = torch.cat(values).cpu()
        elif all(_equal(first, value) for value in values[1:]):
            fixed[key] = first
        else:
            raise InputError(
                "a reconstructed module needs arguments that are equal for every batch, or have entries for every "
                f"image, and argument {key!r} is neither",
                where=name,
            )
    return by_image, fixed


def _call_for_one_image(model: nn.Module, name: str, image: Tensor) -> tuple[int, dict[int | str, Any]]:
    """Entries of the first argument in the module's only call for one image (at least 1), and the other arguments."""
    calls: list[tuple[int, dict[int | str, Any]]] = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((_entries(args), _other_arguments(args, kwargs))), with_kwargs=True
    )
    try:
        with torch.no_grad():
            model(image)
    finally:
        handle.remove()
    if len(calls) != 1:
        count = f"calls this {len(calls)} times" if calls else "does not call this block"
        raise InputError(f"a reconstructed block is called once in a forward, and the model {count}", where=name)
    return calls[0]


def _entries(args: tuple[Any, ...]) -> int:
    return len(args[0]) if args and isinstance(args[0], Tensor) and args[0].dim() > 0 else 1


def _other_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int | str, Any]:
    others: dict[int | str, Any] = dict(enumerate(args[1:], 1))
    return others | kwargs


def _check_tensors(name: str, args: tuple[Any, ...], out: object, rows: int) -> None:
    if not (args and all(_has_rows(x, rows) for x in (args[0], out))):
        raise _no_batch(name)


def _no_batch(name: str) -> InputError:
    return InputError(
        "a reconstructed module needs a first argument and an output that are tensors with as many entries for every "
        "image",
        where=name,
        fix="reconstruct the surrounding block as a whole, as brecq.brecq does, instead of each operation",
    )


def _is_constant(model: nn.Module, name: str, image: Tensor) -> bool:
    """Whether a module gets the same for every image; sizes alone do not tell."""
    return batch_axes(model, {name: model.get_submodule(name)}, image).of(name).constant


def _has_rows(value: object, count: int) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == count


def _equal_all(first: dict[int | str, Any], second: dict[int | str, Any]) -> bool:
    return first.keys() == second.keys() and all(_equal(value, second[key]) for key, value in first.items())


def _equal(first: object, second: object) -> bool:
    """Whether two values of an argument are equal; only the types of unknown objects are compared."""
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and first.shape == second.shape and torch.equal(first, second)
    if isinstance(first, (tuple, list)) and isinstance(second, (tuple, list)):
        return len(first) == len(second) and all(map(_equal, first, second))
    return first == second if isinstance(first, (int, float, str)) else type(first) is type(second)
