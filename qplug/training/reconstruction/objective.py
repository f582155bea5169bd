"""The objective that an iteration of reconstruction minimizes, eager or compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from qplug.core.errors import PluginError
from qplug.training.learners import Learner
from qplug.training.reconstruction.losses import OutputLoss

COMPILED_VARIANTS = 65_536
"""Limit of compilations of ``ReconstructionObjective`` in a process: each kind of block needs two.

One is with the penalty, and one without.
"""

Minimized: TypeAlias = Callable[..., tuple[Tensor, Tensor]]


class ReconstructionObjective(nn.Module):
    """The error of a block's output plus λ·Σ penalties of its soft bits.

    One module computes both, so that compiled code computes each soft bit once, for the weight and for the penalty.
    """

    def __init__(self, block: nn.Module, learners: Iterable[Learner], loss: OutputLoss, weight: float) -> None:
        super().__init__()
        self.block, self.loss = block, loss
        self.learners, self.weight = tuple(learners), weight  # a tuple: the block registers these modules already

    def forward(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], expected: Tensor, images: Tensor, beta: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The objective, and the error alone without gradients; () each.

        Args:
            args: positional arguments of the block.
            kwargs: keyword arguments of the block.
            expected: (B, …) outputs of the float block.
            images: (B,) int64, indices of the entries.
            beta: () the penalty's exponent; ``None`` for no penalty.
        """
        error: Tensor = self.loss(self.block(*args, **kwargs) - expected, images)
        if beta is None:
            return error, error.detach()
        penalties = torch.stack([learner.penalty(beta) for learner in self.learners])
        return error + self.weight * penalties.sum(), error.detach()


def compiled(objective: ReconstructionObjective) -> Minimized:
    """``objective`` by ``torch.compile``, which fuses elementwise operations; blocks of one structure share code."""
    return torch.compile(objective, fullgraph=True, dynamic=False)


@contextmanager
def compiling() -> Iterator[None]:
    """A context for calls of a ``compiled`` objective.

    Raises:
        PluginError: the objective or its gradient cannot be compiled.
    """
    from torch._dynamo import config, exc  # imported here, because the import takes seconds

    try:
        with config.patch(cache_size_limit=COMPILED_VARIANTS, accumulated_cache_size_limit=COMPILED_VARIANTS):
            yield
    except exc.TorchDynamoException as error:
        cause = getattr(error, "inner_exception", error)
        lines = [line for line in str(cause).splitlines() if line.strip()]
        reasons = [line.strip() for line in lines[1:] if "error: " in line]  # messages of a C++ compiler
        raise PluginError(
            f"an iteration cannot be compiled: {' '.join([type(cause).__name__ + ':', *lines[:1], *reasons[:1]])}",
            fix="leave out compile, or install the compiler of torch.compile: a C++ compiler on a CPU, Triton on CUDA; "
            "if the iteration fails without compile too, fix the learner or the loss",
        ) from error
