"""Forwards of a model, or of one of its blocks, over all calibration images."""

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
        batches: images, (B, C, H, W) each; for ``replayed``, indices of images, (B,) int64 each.
        replayed: one block of the model, which runs instead of the model.
    """

    model: nn.Module
    batches: Sequence[Tensor]
    replayed: nn.Module | None = None

    @property
    def executed(self) -> nn.Module:
        """The module that runs: the model, or its replayed block."""
        return self.model if self.replayed is None else self.replayed

    def capture(self, name: str) -> Calls:
        """The calls of the module ``name``, as the function ``capture`` returns them."""
        return capture(self.executed, name, self.batches)

    def replay_block(self, block: str) -> Forwards:
        """Forwards of ``block`` alone, so that the modules before the block do not run again for each of its parts.

        A block is replayed if ``capture`` accepts it and it has one entry for each image. Otherwise the model runs.
        """
        try:
            calls = self.capture(block)
        except InputError:
            return self
        if calls.entries > 1 or calls.constant:
            return self
        indices = torch.split(torch.arange(len(calls.inputs)), [len(batch) for batch in self.batches])
        return Forwards(self.model, indices, _ReplayedBlock(self.model, block, calls, self.batches[0].device))


class _ReplayedBlock(nn.Module):
    """The module ``block`` of the model at its own path, called with the arguments in ``calls``."""

    def __init__(self, model: nn.Module, block: str, calls: Calls, device: torch.device) -> None:
        super().__init__()
        put(self, block, model.get_submodule(block))
        self._block, self._calls, self._device = block, calls, device

    def forward(self, images: Tensor) -> Tensor:
        args, kwargs = self._calls.arguments(self._calls.inputs[images].to(self._device), images)
        outputs: Tensor = self.get_submodule(self._block)(*args, **kwargs)
        return outputs
