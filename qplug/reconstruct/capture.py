"""What a block is given and what it gives, on all calibration images, kept for one block at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from qplug.errors import InputError


@dataclass(frozen=True)
class Calls:
    """The calls of one module over all images, on the CPU until they are moved.

    Attributes:
        inputs: (images, …) its first argument.
        rest: its other arguments, by place or name: (images, …) where they have an entry for every image, and else what
            they were, the same for every batch.
        outputs: (images, …).
    """

    inputs: Tensor
    rest: dict[int | str, Any]
    outputs: Tensor

    def arguments(self, inputs: Tensor, images: Tensor) -> tuple[list[Any], dict[str, Any]]:
        """The call's arguments for these ``images`` (int64, where the calls are), the first being ``inputs``."""
        taken = {key: x[images].to(inputs.device) if self._by_image(x) else x for key, x in self.rest.items()}
        places = sorted(key for key in taken if isinstance(key, int))
        return [inputs, *(taken[place] for place in places)], {k: v for k, v in taken.items() if isinstance(k, str)}

    def to(self, device: torch.device) -> Calls:
        """The same on ``device``."""
        rest = {key: x.to(device) if self._by_image(x) else x for key, x in self.rest.items()}
        return Calls(self.inputs.to(device), rest, self.outputs.to(device))

    @property
    def bytes(self) -> int:
        """Memory of all that there is for every image."""
        kept = [self.inputs, self.outputs, *(x for x in self.rest.values() if self._by_image(x))]
        return sum(x.numel() * x.element_size() for x in kept)

    def _by_image(self, value: object) -> TypeGuard[Tensor]:
        return _has_rows(value, len(self.inputs))


class _Enough(Exception):
    """Raised by a hook: what lies behind the block need not be computed."""


def capture(model: nn.Module, name: str, batches: Sequence[Tensor]) -> Calls:
    """The calls of the module ``name`` while ``model`` sees ``batches``, (B, C, H, W) each; nothing behind it runs.

    Raises:
        InputError: the module is not called, or called again, or not with a batch first.
    """
    seen: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        _check(name, args, out, len(batches[len(seen)]))
        seen.append(((args[0].cpu(), *args[1:]), kwargs, out.cpu()))  # at once: not all of them need fit on the device
        raise _Enough

    _check_calls(model, name, batches[0][:1])
    handle = model.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad():
            for batch in batches:
                with suppress(_Enough):
                    model(batch)
    finally:
        handle.remove()
    args, kwargs, _ = seen[0]
    rest: dict[int | str, Any] = {}
    for key in (*range(1, len(args)), *kwargs):
        values = [kw[key] if isinstance(key, str) else a[key] for a, kw, _ in seen]
        each = all(_has_rows(value, len(a[0])) for value, (a, _, _) in zip(values, seen, strict=True))
        rest[key] = torch.cat(values).cpu() if each else values[0]
    return Calls(torch.cat([a[0] for a, _, _ in seen]), rest, torch.cat([out for _, _, out in seen]))


def _check_calls(model: nn.Module, name: str, image: Tensor) -> None:
    calls: list[None] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda *_: calls.append(None))
    try:
        with torch.no_grad():
            model(image)
    finally:
        handle.remove()
    if len(calls) != 1:
        how = f"calls this {len(calls)} times" if calls else "does not call this block"
        raise InputError(f"the model {how}, so it cannot be reconstructed", where=name)


def _check(name: str, args: tuple[Any, ...], out: object, images: int) -> None:
    if args and all(_has_rows(x, images) for x in (args[0], out)):
        return
    raise InputError(
        "what is reconstructed has a first argument and a result that are tensors with an entry for every image",
        where=name,
        fix="leave it to no technique that reconstructs it: reconstruct whole blocks, or narrow what they match",
    )


def _has_rows(value: object, count: int) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == count
