"""A model's forwards over all calibration images, or those of one of its blocks, called as the model calls it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qplug.core.errors import InputError
from qplug.models.surgery import put
from qplug.training.reconstruction.capture import Calls, capture


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
        """For modules within ``block``: what lies before the block need not be run again for each of them.

        A block that is not called once, with an entry for each image and the like, is not replayed: the model is run.
        """
        try:
            calls = self.capture(block)
        except InputError:
            return self
        if calls.entries > 1:
            return self
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
