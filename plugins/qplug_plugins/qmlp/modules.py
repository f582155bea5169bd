"""Q-MLP's replacement modules. Importing this module imports torch."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from qplug import InputError


class Pact(nn.Module):
    """y = 0.5·(|x| − |x − α| + α), x clipped to [0, α] (Q-MLP, Eq. 4); the gradient of α is 1 for x above α.

    Args:
        alpha: the initial upper bound, positive, in the units of x.
    """

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(alpha))

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape. It is computed as a minimum, since the printed form has cancellation errors in float32."""
        return torch.minimum(torch.relu(x), self.alpha)

    def extra_repr(self) -> str:
        """The bound, for ``repr``."""
        return f"alpha={float(self.alpha.detach()):g}"


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the last axis of (…, C), the channel axis of timm's MLP models (Q-MLP, Eq. 3)."""

    @classmethod
    def like(cls, gain: Tensor, offset: Tensor, eps: float) -> TokenBatchNorm:
        """A BatchNorm that initially computes gain·x + offset in eval mode; both are (C,)."""
        norm = cls(len(gain), eps=eps, device=gain.device, dtype=gain.dtype)
        norm.weight.data, norm.bias.data = gain * math.sqrt(1.0 + eps), offset
        return norm.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        return super().forward(input.flatten(0, -2)).view_as(input)


class MultipleTokenMixers(nn.Module):
    """Parallel token mixers, one for each group of consecutive channels (Q-MLP, Fig. 1).

    If the number of channels is not a multiple of ``groups``, group sizes differ by one channel.

    Args:
        mixer: (…, C, N) → (…, C, N), over tokens, equal for every channel; each group gets a copy.
        groups: number of groups.
    """

    def __init__(self, mixer: nn.Module, groups: int) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(copy.deepcopy(mixer) for _ in range(groups))

    def forward(self, x: Tensor) -> Tensor:
        """(…, C, N) → (…, C, N); raises ``InputError`` if there are fewer channels than groups."""
        if x.shape[-2] < len(self.mixers):
            raise InputError(
                f"{x.shape[-2]} channels cannot be divided into {len(self.mixers)} groups",
                where="qmlp.token_mixers",
                fix="set fewer groups, or match only modules whose input is (…, channels, tokens)",
            )
        parts = x.tensor_split(len(self.mixers), dim=-2)
        return torch.cat([mixer(part) for mixer, part in zip(self.mixers, parts, strict=True)], dim=-2)
