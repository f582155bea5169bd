"""torch's ``nn.LSTM`` with its products as linears."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Hidden = tuple[Tensor, Tensor]


class ExplicitLSTM(nn.Module):
    """``nn.LSTM`` without projections, whose products are linears: one of all inputs, and one of each step's state.

    Each layer and direction has the linears ``input`` and ``hidden``, whose outputs are the sums of the input, forget,
    cell and output gates, in this order, as torch's weights have them. Dropout between layers is left out, as in
    evaluation mode.
    """

    def __init__(self, original: nn.LSTM) -> None:
        super().__init__()
        self.batch_first, self.hidden_size = original.batch_first, original.hidden_size
        self.directions = 2 if original.bidirectional else 1
        suffixes = ("", "_reverse")[: self.directions]
        self.layers = nn.ModuleList(
            nn.ModuleList(Direction(original, f"l{layer}{suffix}") for suffix in suffixes)
            for layer in range(original.num_layers)
        )

    def forward(self, x: Tensor, hx: Hidden | None = None) -> tuple[Tensor, Hidden]:
        """Arguments and results of ``nn.LSTM``.

        Args:
            x: (T, C), (T, B, C), or (B, T, C) if ``batch_first``.
            hx: the states and cells before the first step, each (layers · directions, [B,] H); zeros unless given.

        Returns:
            The last layer's states, in the layout of ``x``, and the states and cells after the last step.

        Raises:
            TypeError: ``x`` is a packed sequence.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"expected a tensor, received {type(x).__name__}: pad the sequences")
        batched, first = x.dim() == 3, 0 if self.batch_first else 1
        x = x.movedim(first, 0) if batched else x.unsqueeze(0)  # (B, T, C)
        states = self._states(x, hx, batched)
        ends: list[Hidden] = []
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            outs = []
            for reverse, direction in enumerate(layer):
                out, end = direction(x.flip(1) if reverse else x, *states[len(ends)])
                outs.append(out.flip(1) if reverse else out)
                ends.append(end)
            x = torch.cat(outs, -1)
        h, c = (torch.stack([end[i] for end in ends]) for i in range(2))
        return (x.movedim(0, first), (h, c)) if batched else (x[0], (h[:, 0], c[:, 0]))

    def _states(self, x: Tensor, hx: Hidden | None, batched: bool) -> list[Hidden]:
        """Of each layer and direction: state and cell, each (B, H)."""
        count = len(self.layers) * self.directions
        if hx is None:
            zeros = x.new_zeros(len(x), self.hidden_size)
            return [(zeros, zeros)] * count
        h, c = hx if batched else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        return [(h[i], c[i]) for i in range(count)]


class Direction(nn.Module):
    """One layer of an LSTM in one direction."""

    def __init__(self, original: nn.LSTM, suffix: str) -> None:
        super().__init__()
        self.input = _linear(original, "ih", suffix)
        self.hidden = _linear(original, "hh", suffix)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Hidden]:
        """x: (B, T, C), h and c: (B, H) → states (B, T, H), and the last state and cell."""
        outs = []
        for gates in self.input(x).unbind(1):
            i, f, g, o = (gates + self.hidden(h)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outs.append(h)
        return torch.stack(outs, 1), (h, c)


def _linear(original: nn.LSTM, product: str, suffix: str) -> nn.Linear:
    weight = getattr(original, f"weight_{product}_{suffix}")
    linear = nn.Linear(weight.shape[1], len(weight), original.bias, device="meta")
    linear.weight = weight
    if original.bias:
        linear.bias = getattr(original, f"bias_{product}_{suffix}")
    return linear
