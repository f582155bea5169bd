"""``Schedule``: what a recipe says of a reconstruction, whichever technique learns."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from qplug.core.component import Config
from qplug.core.types import LossName

Exponent = Annotated[float, Field(ge=1.0, le=100.0)]


class Schedule(Config):
    """Fields for the ``Config`` of a technique that reconstructs, under the names that ``Reconstruction`` gives them.

    The defaults are BRECQ's; AdaRound's paper has them too, but 10,000 iterations.
    """

    iterations: int = Field(20_000, ge=1, le=1_000_000, description="steps of Adam for each block or operation")
    batch_size: int = Field(32, ge=1, le=4096, description="images of each step")
    weight: float = Field(0.01, ge=0.0, le=1e3, description="λ, weight of the penalty of soft bits, without unit")
    beta: tuple[Exponent, Exponent] = Field((20.0, 2.0), description="the penalty's exponent, at first and at last")
    warmup: float = Field(0.2, ge=0.0, lt=1.0, description="share of the iterations before the penalty sets in")
    loss: LossName = Field("mse", description="what an error of the output costs; AdaRound's and Mr.BiQ's is mse")
    compile: bool = Field(
        False,
        description="compute iterations by torch.compile: less time for each, after a minute or two for each kind of "
        "block, so that it is for thousands of them; needs a C++ compiler on a CPU, Triton on CUDA",
    )

    def scheduled(self) -> dict[str, Any]:
        """These fields, for ``Reconstruction``."""
        return {name: getattr(self, name) for name in Schedule.model_fields}
