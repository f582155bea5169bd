"""What an iteration of a reconstruction minimises, as it stands or compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from qplug.errors import PluginError
from qplug.quantizers.learners import Learner
from qplug.reconstruct.losses import OutputLoss

VARIANTS = 256
"""How often one objective is compiled: once for each shape and kind of block, with and without the penalty."""

Minimised: TypeAlias = Callable[..., tuple[Tensor, Tensor]]


class Objective(nn.Module):
    """The error of a block's output, and λ·Σ penalties of its soft bits.

    Both are in one place, so that a compiled one computes each soft bit once for the weight and for its penalty.
    """

    def __init__(self, block: nn.Module, learners: Iterable[Learner], loss: OutputLoss, weight: float) -> None:
        super().__init__()
        self.block, self.loss = block, loss
        self.learners, self.weight = tuple(learners), weight  # a tuple: they are the block's already

    def forward(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], expected: Tensor, images: Tensor, beta: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What is minimised, and the error alone, without gradients; () each.

        Args:
            args: the block's.
            kwargs: the block's.
            expected: (B, …) what the float block gives.
            images: (B,) int64, their numbers.
            beta: () the penalty's exponent; ``None`` while nothing is penalised.
        """
        error: Tensor = self.loss(self.block(*args, **kwargs) - expected, images)
        if beta is None:
            return error, error.detach()
        penalties = torch.stack([learner.penalty(beta) for learner in self.learners])
        return error + self.weight * penalties.sum(), error.detach()


def compiled(objective: Objective) -> Minimised:
    """The same by ``torch.compile``, whose elementwise passes over memory become one; blocks that are alike share it.

    Calling it raises ``PluginError`` where it cannot be compiled.
    """
    made = torch.compile(objective, dynamic=False)

    def call(*args: Any) -> tuple[Tensor, Tensor]:
        try:
            with torch._dynamo.config.patch(cache_size_limit=VARIANTS):  # above it iterations would be eager, unsaid
                found: tuple[Tensor, Tensor] = made(*args)
        except torch._dynamo.exc.TorchDynamoException as error:
            said = " ".join(str(error).split("\n\n")[0].split())  # what follows the first blank line is advice on logs
            raise PluginError(
                f"an iteration cannot be compiled: {said}",
                fix="install a C++ compiler that torch.compile finds, or leave out compile",
            ) from error
        return found

    return call
