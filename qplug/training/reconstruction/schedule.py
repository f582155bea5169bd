"""``Schedule``: the recipe fields that all reconstruction techniques share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from qplug.core.component import Config
from qplug.core.types import LossName

Exponent = Annotated[float, Field(ge=1.0, le=100.0)]


class Schedule(Config):
    """Base of the ``Config`` of a reconstruction technique; the fields have the names of ``Reconstruction``'s.

    The defaults are BRECQ's. AdaRound's paper has the same values, except for 10,000 iterations.
    """

    iterations: int = Field(20_000, ge=1, le=1_000_000, description="steps of Adam for each block or operation")
    batch_size: int = Field(32, ge=1, le=4096, description="images per step")
    weight: float = Field(0.01, ge=0.0, le=1e3, description="λ, weight of the penalty of soft bits, without unit")
    beta: tuple[Exponent, Exponent] = Field((20.0, 2.0), description="the penalty's exponent at the start and the end")
    warmup: float = Field(0.2, ge=0.0, lt=1.0, description="share of the iterations before the penalty starts")
    loss: LossName = Field("mse", description="loss of the output's error; AdaRound's and Mr.BiQ's is mse")
    compile: bool = Field(
        False,
        description="compute iterations by torch.compile, which pays off from thousands of iterations: each takes less "
        "time, but each kind of block compiles for a minute or two; needs a C++ compiler on a CPU, Triton on CUDA",
    )

    def scheduled(self) -> dict[str, Any]:
        """These fields as keyword arguments of ``Reconstruction``."""
        return {name: getattr(self, name) for name in Schedule.model_fields}
