"""Scale layouts: which elements of a tensor share one scale."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from qplug.core.types import Granularity, Site


@dataclass(frozen=True)
class ScaleLayout:
    """A granularity on one tensor: its axis, and the size of its blocks.

    Attributes:
        axis: the axis whose indices each have their own scale; ``None``: the tensor has one scale.
        block: elements per scale along the last axis, a divisor of its length; ``None``: all elements.
    """

    axis: int | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        if self.block is not None and self.axis == -1:
            raise ValueError("expected blocks along the last axis within each index of another axis, received axis -1")

    @classmethod
    def of(cls, granularity: Granularity, site: Site) -> ScaleLayout:
        """The layout of ``granularity`` on the tensor of ``site``; one scale if the tensor has no such axis."""
        axes = {Granularity.PER_CHANNEL: site.channel_axis, Granularity.PER_HEAD: site.head_axis}
        return cls(axes.get(granularity))

    def split(self, values: Tensor) -> Tensor:
        """Values in the layout of the tensor → (scales, values of each scale)."""
        if self.axis is not None:
            values = values.movedim(self.axis, 0)
        if self.block is not None:
            return values.reshape(-1, self.block)
        return values.flatten().unsqueeze(0) if self.axis is None else values.flatten(1)

    def shape(self, tensor: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales, which broadcasts with a tensor of the shape ``tensor``.

        With blocks, it broadcasts with the tensor (…, K) viewed as (…, K/block, block); the scales have the shape
        (…, K/block, 1).
        """
        if self.block is not None:
            return (*tensor[:-1], tensor[-1] // self.block, 1)
        if self.axis is None:
            return ()
        trailing = len(tensor) - 1 - self.axis if self.axis >= 0 else -self.axis - 1
        return (tensor[self.axis], *[1] * trailing)
