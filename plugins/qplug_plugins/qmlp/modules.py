"""The modules that Q-MLP puts in the place of others. Importing this imports torch."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from qplug import InputError


class Pact(nn.Module):
    """y = 0.5·(|x| − |x − α| + α), x clipped to [0, α] (Q-MLP, Eq. 4); the gradient of α is 1 where x is above it.

    Args:
        alpha: the first upper bound, positive, in the units of x.
    """

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(alpha))

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape. As a minimum: float32 would cancel in the printed form."""
        return torch.minimum(torch.relu(x), self.alpha)

    def extra_repr(self) -> str:
        """The bound."""
        return f"alpha={float(self.alpha.detach()):g}"


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the last axis of (…, C), where timm's MLP models have their channels (Q-MLP, Eq. 3)."""

    @classmethod
    def like(cls, gain: Tensor, offset: Tensor, eps: float) -> TokenBatchNorm:
        """The one that in eval mode computes gain·x + offset, (C,) each, until its running statistics move."""
        norm = cls(len(gain), eps=eps, device=gain.device, dtype=gain.dtype)
        norm.weight.data, norm.bias.data = gain * math.sqrt(1.0 + eps), offset
        return norm.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        """(…, C) → the same."""
        return super().forward(input.flatten(0, -2)).view_as(input)


class MultipleTokenMixers(nn.Module):
    """Token mixers side by side, each for a group of neighbouring channels (Q-MLP, Fig. 1).

    Groups differ in size by one channel where the number of channels is no multiple of theirs.

    Args:
        mixer: (…, C, N) → (…, C, N), over tokens, alike for every channel; each group gets a copy.
        groups: how many.
    """

    def __init__(self, mixer: nn.Module, groups: int) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(copy.deepcopy(mixer) for _ in range(groups))

    def forward(self, x: Tensor) -> Tensor:
        """(…, C, N) → the same; raises ``InputError`` where there are fewer channels than groups."""
        if x.shape[-2] < len(self.mixers):
            raise InputError(
                f"{x.shape[-2]} channels cannot be divided into {len(self.mixers)} groups",
                where="qmlp.token_mixers",
                fix="give fewer groups, or match only modules whose input is (…, channels, tokens)",
            )
        parts = x.tensor_split(len(self.mixers), dim=-2)
        return torch.cat([mixer(part) for mixer, part in zip(self.mixers, parts, strict=True)], dim=-2)
