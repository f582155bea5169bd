"""Origins of tensors: preserved by changes of layout, dropped by arithmetic, with a callback for every use."""

import pytest
import torch
from torch.nn import functional as F

from qplug.models.tracing import Tracer


def trace(function):
    """The origin of ``function``'s output for a labelled (2, 4, 6) tensor, and the recorded uses."""
    uses = []
    tracer = Tracer(lambda origin, name: uses.append((origin, name)))
    x = torch.randn(2, 4, 6)
    tracer.label(x, "norm:n")
    with tracer:
        out = function(x)
    return tracer.origin(out), uses


MOVES = {
    "reshape": lambda x: x.reshape(8, 6),
    "permute, contiguous": lambda x: x.permute(0, 2, 1).contiguous(),
    "transpose": lambda x: x.transpose(1, 2),
    "flatten": lambda x: torch.flatten(x, 1),
    "roll": lambda x: torch.roll(x, 1, 1),
    "dropout outside training": lambda x: F.dropout(x, 0.5, training=False),
    "padding of nothing": lambda x: F.pad(x, (0, 0, 0, 0)),
    "windows": lambda x: x.view(2, 2, 2, 6).permute(0, 2, 1, 3).contiguous().view(-1, 2, 6),
    "to, clone, detach": lambda x: x.to(torch.float32).clone().detach(),
    "unsqueeze, expand": lambda x: x.unsqueeze(0).expand(3, -1, -1, -1),
}


@pytest.mark.parametrize("move", MOVES)
def test_a_change_of_layout_preserves_the_origin_and_is_not_a_use(move):
    assert trace(MOVES[move]) == ("norm:n", [])


USES = {
    "add": lambda x: x + 1,
    "add, right": lambda x: torch.ones(2, 4, 6) + x,
    "mean": lambda x: x.mean(1),
    "index": lambda x: x[:, 0],
    "padding": lambda x: F.pad(x, (0, 0, 0, 1)),
    "unbind": lambda x: x.unbind(1)[0],
    "keyword": lambda x: torch.add(input=x, other=1),
    "list": lambda x: torch.cat([torch.ones(2, 4, 6), x], 1),
    "tuple": lambda x: torch.stack((x, x)),
    "keyword list": lambda x: torch.cat(tensors=[x]),
    "einsum": lambda x: torch.einsum("bnc,bnc->bn", x, x),
    "transpose by attribute": lambda x: x.mT,
    "linear function": lambda x: F.linear(x, torch.ones(3, 6)),
    "after layout": lambda x: x.reshape(8, 6) * 2,
    "in place": lambda x: x.add_(1).sum(),
    "attention": lambda x: F.scaled_dot_product_attention(query=x, key=x, value=x),
}


@pytest.mark.parametrize("use", USES)
def test_every_computation_is_a_use(use):
    origin, uses = trace(USES[use])
    assert origin is None
    assert {label for label, _ in uses} == {"norm:n"}


def test_reading_sizes_is_not_a_use():
    def read_sizes(x):
        assert (x.shape[0], x.size(1), x.dim(), x.device.type, x.dtype) == (2, 4, 3, "cpu", torch.float32)
        return x

    assert trace(read_sizes) == ("norm:n", [])


def test_no_use_is_recorded_while_quiet():
    uses = []
    tracer = Tracer(lambda *use: uses.append(use))
    x = torch.randn(2, 3)
    tracer.label(x, "norm:n")
    with tracer:
        tracer.quiet += 1
        y = x + 1
        z = x.view(3, 2)
        tracer.quiet -= 1
    assert uses == []
    assert tracer.origin(y) is tracer.origin(z) is None
