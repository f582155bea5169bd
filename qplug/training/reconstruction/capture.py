"""What a block is given and what it gives, on all calibration images, kept for one block at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from qplug.core.errors import InputError


@dataclass(frozen=True)
class Calls:
    """The calls of one module over all images, on the CPU until they are moved.

    They have one entry for each image, or where an operation sees parts of it, such as Swin's windows, several, which
    are then drawn and weighed as images are.

    Attributes:
        inputs: (images · ``entries``, …) its first argument.
        outputs: (images · ``entries``, …).
        by_image: its other arguments that have entries for every image, by place or name: (images · ``entries``, …).
        fixed: its other arguments that are the same for every batch.
        entries: how many an image has.
    """

    inputs: Tensor
    outputs: Tensor
    by_image: dict[int | str, Tensor] = field(default_factory=dict)
    fixed: dict[int | str, Any] = field(default_factory=dict)
    entries: int = 1

    def arguments(self, inputs: Tensor, images: Tensor) -> tuple[list[Any], dict[str, Any]]:
        """The call's arguments for the entries ``images`` (int64, where the calls are), the first being ``inputs``."""
        taken = self.fixed | {key: x[images].to(inputs.device) for key, x in self.by_image.items()}
        places = sorted(key for key in taken if isinstance(key, int))
        return [inputs, *(taken[place] for place in places)], {k: v for k, v in taken.items() if isinstance(k, str)}

    def to(self, device: torch.device) -> Calls:
        """The same on ``device``."""
        by_image = {key: x.to(device) for key, x in self.by_image.items()}
        return replace(self, inputs=self.inputs.to(device), outputs=self.outputs.to(device), by_image=by_image)

    @property
    def bytes(self) -> int:
        """Memory of all that there is for every image."""
        return sum(x.numel() * x.element_size() for x in (self.inputs, self.outputs, *self.by_image.values()))


class _Enough(Exception):
    """Raised by a hook: what lies behind the block need not be computed."""


def capture(model: nn.Module, name: str, batches: Sequence[Tensor]) -> Calls:
    """The calls of the module ``name`` while ``model`` sees ``batches``, (B, C, H, W) each; nothing behind it runs.

    Raises:
        InputError: the module is not called, or called again, or not with a batch first, or with something that is
            neither by image nor the same for every batch.
    """
    seen: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        _check(name, args, out, entries * len(batches[len(seen)]))
        seen.append(((args[0].cpu(), *args[1:]), kwargs, out.cpu()))  # at once: not all of them need fit on the device
        raise _Enough

    entries, one = _one_call(model, name, batches[0][:1])
    handle = model.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad():
            for batch in batches:
                with suppress(_Enough):
                    model(batch)
    finally:
        handle.remove()
    return Calls(
        torch.cat([args[0] for args, _, _ in seen]),
        torch.cat([out for _, _, out in seen]),
        *_sorted(name, entries, one, [(len(args[0]), _others(args, kwargs)) for args, kwargs, _ in seen]),
        entries,
    )


def _sorted(
    name: str, entries: int, one: dict[int | str, Any], calls: Sequence[tuple[int, dict[int | str, Any]]]
) -> tuple[dict[int | str, Tensor], dict[int | str, Any]]:
    """The other arguments by image, and those that are fixed; ``one`` image has ``entries``, each call as it says."""
    by_image: dict[int | str, Tensor] = {}
    fixed: dict[int | str, Any] = {}
    for key, first in calls[0][1].items():
        values = [given[key] for _, given in calls]
        # What has as many rows as a batch by accident still has them where there is one image.
        if _has_rows(one.get(key), entries) and all(_has_rows(given[key], rows) for rows, given in calls):
            by_image[key] = torch.cat(values).cpu()
        elif all(_same(first, value) for value in values[1:]):
            fixed[key] = first
        else:
            what = f"argument {key!r} of its call is another for each batch, and has no entry for every image"
            raise InputError(f"{what}, so it cannot be reconstructed", where=name)
    return by_image, fixed


def _one_call(model: nn.Module, name: str, image: Tensor) -> tuple[int, dict[int | str, Any]]:
    """Entries of the first argument of the module's only call for one image, 1 if they are none, and the others."""
    calls: list[tuple[int, dict[int | str, Any]]] = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((_entries(args), _others(args, kwargs))), with_kwargs=True
    )
    try:
        with torch.no_grad():
            model(image)
    finally:
        handle.remove()
    if len(calls) != 1:
        how = f"calls this {len(calls)} times" if calls else "does not call this block"
        raise InputError(f"the model {how}, so it cannot be reconstructed", where=name)
    return calls[0]


def _entries(args: tuple[Any, ...]) -> int:
    return len(args[0]) if args and isinstance(args[0], Tensor) and args[0].dim() > 0 else 1


def _others(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int | str, Any]:
    others: dict[int | str, Any] = dict(enumerate(args[1:], 1))
    return others | kwargs


def _check(name: str, args: tuple[Any, ...], out: object, rows: int) -> None:
    if args and all(_has_rows(x, rows) for x in (args[0], out)):
        return
    raise InputError(
        "what is reconstructed has a first argument and a result that are tensors with as many entries for every image",
        where=name,
        fix="reconstruct the block that holds it as a whole, as brecq.brecq does, instead of each operation",
    )


def _has_rows(value: object, count: int) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == count


def _same(one: object, other: object) -> bool:
    """Whether two values of an argument are equal, as far as what they are can be compared."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other if isinstance(one, (int, float, str)) else type(one) is type(other)
