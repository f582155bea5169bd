"""What a block is given and what it gives, on all calibration images, kept for one block at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from qplug.errors import InputError
from qplug.reconstruct.blocks import put


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


@dataclass(frozen=True)
class Forwards:
    """The forwards of a model over all calibration images, from which the calls of its modules are captured.

    Attributes:
        model: the model.
        batches: its images, (B, C, H, W) each, or for ``replayed`` their places, (B,) int64 each.
        replayed: one block of the model, which is run instead of it.
    """

    model: nn.Module
    batches: Sequence[Tensor]
    replayed: nn.Module | None = None

    @property
    def run(self) -> nn.Module:
        """What is run: the model, or one block of it."""
        return self.model if self.replayed is None else self.replayed

    def capture(self, name: str) -> Calls:
        """The calls of the module ``name``, as ``capture`` gives them."""
        return capture(self.run, name, self.batches)

    def within(self, block: str) -> Forwards:
        """For modules within ``block``: what lies before the block need not be run again for each of them."""
        calls = self.capture(block)
        places = torch.split(torch.arange(len(calls.inputs)), [len(batch) for batch in self.batches])
        return Forwards(self.model, places, _Replayed(self.model, block, calls, self.batches[0].device))


class _Replayed(nn.Module):
    """The model's own ``block`` at its own path, called as it was when ``calls`` were captured."""

    def __init__(self, model: nn.Module, block: str, calls: Calls, device: torch.device) -> None:
        super().__init__()
        put(self, block, model.get_submodule(block))
        self._block, self._calls, self._device = block, calls, device

    def forward(self, images: Tensor) -> Tensor:
        args, kwargs = self._calls.arguments(self._calls.inputs[images].to(self._device), images)
        outputs: Tensor = self.get_submodule(self._block)(*args, **kwargs)
        return outputs


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
