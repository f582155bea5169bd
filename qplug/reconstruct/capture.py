"""What a block is given and what it gives, on all calibration images, kept for one block at a time."""

from __future__ import annotations

from collections.abc import Sequence
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
        InputError: the module is called more or less than once for a batch, or not with a batch first.
    """
    seen: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        seen.append((args, kwargs, out))
        raise _Enough

    handle = model.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad():
            for batch in batches:
                try:
                    model(batch)
                except _Enough:
                    _check(name, seen[-1], len(batch))
    finally:
        handle.remove()
    if len(seen) != len(batches):
        raise InputError("the model does not call this block, so it cannot be reconstructed", where=name)
    args, kwargs, _ = seen[0]
    rest: dict[int | str, Any] = {}
    for key in (*range(1, len(args)), *kwargs):
        values = [kw[key] if isinstance(key, str) else a[key] for a, kw, _ in seen]
        each = all(_has_rows(value, len(a[0])) for value, (a, _, _) in zip(values, seen, strict=True))
        rest[key] = torch.cat(values).cpu() if each else values[0]
    return Calls(torch.cat([a[0].cpu() for a, _, _ in seen]), rest, torch.cat([out.cpu() for _, _, out in seen]))


def _check(name: str, call: tuple[tuple[Any, ...], dict[str, Any], Tensor], images: int) -> None:
    args, _, out = call
    batched = [args[0] if args else None, out]
    if all(_has_rows(x, images) for x in batched):
        return
    raise InputError(
        "a block is reconstructed whose first argument and whose result are tensors with an entry for every image",
        where=name,
        fix="name its operations instead, by a technique that reconstructs each operation",
    )


def _has_rows(value: object, count: int) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == count
