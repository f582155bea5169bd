"""What an iteration of a reconstruction minimizes, as it stands or compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from qplug.core.errors import PluginError
from qplug.training.learners import Learner
from qplug.training.reconstruction.losses import OutputLoss

VARIANTS = 65_536
"""How often ``Objective`` may be compiled in a process: without and with the penalty, for each kind of block."""

Minimized: TypeAlias = Callable[..., tuple[Tensor, Tensor]]


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
        """What is minimized, and the error alone, without gradients; () each.

        Args:
            args: the block's.
            kwargs: the block's.
            expected: (B, …) what the float block gives.
            images: (B,) int64, their numbers.
            beta: () the penalty's exponent; ``None`` while nothing is penalized.
        """
        error: Tensor = self.loss(self.block(*args, **kwargs) - expected, images)
        if beta is None:
            return error, error.detach()
        penalties = torch.stack([learner.penalty(beta) for learner in self.learners])
        return error + self.weight * penalties.sum(), error.detach()


def compiled(objective: Objective) -> Minimized:
    """The same by ``torch.compile``, which joins elementwise passes over memory; blocks that are alike share it."""
    return torch.compile(objective, fullgraph=True, dynamic=False)


@contextmanager
def compiling() -> Iterator[None]:
    """What is ``compiled`` is called within it: ``PluginError`` where it, or its gradient, cannot be compiled."""
    from torch._dynamo import config, exc  # takes seconds to import, which only those who compile shall wait

    try:
        with config.patch(cache_size_limit=VARIANTS, accumulated_cache_size_limit=VARIANTS):
            yield
    except exc.TorchDynamoException as error:
        cause = getattr(error, "inner_exception", error)
        told = [line for line in str(cause).splitlines() if line.strip()]
        reasons = [line.strip() for line in told[1:] if "error: " in line]  # a C++ compiler's own words
        raise PluginError(
            f"an iteration cannot be compiled: {' '.join([type(cause).__name__ + ':', *told[:1], *reasons[:1]])}",
            fix="leave out compile, or let torch.compile find what it needs, a C++ compiler on a CPU, Triton on CUDA; "
            "what fails without compile too is an error of a learner or of the loss",
        ) from error
