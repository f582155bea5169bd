"""The explicit LSTM computes what torch's does, and its linears are quantized."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from qplug.models.adapters import ADAPTERS, make_explicit
from qplug.models.recurrent import ExplicitLSTM

KINDS = {
    "plain": {},
    "two layers, both ways": {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
    "batch first, no bias": {"batch_first": True, "bias": False, "bidirectional": True},
}


def lstm(kind, **more):
    torch.manual_seed(0)
    return nn.LSTM(5, 4, **KINDS[kind], **more).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [3, None])
@pytest.mark.parametrize("given", [False, True])
def test_it_has_torchs_results(kind, batch, given):
    original = lstm(kind)
    shape = (6, 5) if batch is None else (batch, 6, 5) if original.batch_first else (6, batch, 5)
    count = original.num_layers * (1 + original.bidirectional)
    hidden = (count, 4) if batch is None else (count, batch, 4)
    states = (torch.randn(hidden), torch.randn(hidden)) if given else None
    x = torch.randn(shape)
    with torch.no_grad():
        (out, ends), (expected, expected_ends) = ExplicitLSTM(original)(x, states), original(x, states)
    for a, b in zip((out, *ends), (expected, *expected_ends), strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, atol=1e-6)


class Reader(nn.Module):
    def __init__(self, **more):
        super().__init__()
        self.lstm, self.head = lstm("two layers, both ways", **more), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.lstm(x.transpose(0, 1))[0][-1])


def test_a_model_with_one_computes_the_same_with_linears_instead():
    model, x = Reader().eval(), torch.randn(1, 6, 5)
    before = copy.deepcopy(model)
    assert make_explicit(model, ADAPTERS, x) == ["lstm"]
    x = torch.randn(2, 9, 5)
    assert torch.allclose(model(x), before(x), atol=1e-6)
    assert sum(isinstance(module, nn.Linear) for module in model.modules()) == 9


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_one_with_projections_stays():
    model = nn.Sequential(nn.Identity(), nn.LSTM(5, 4, proj_size=2)).eval()
    model.forward = lambda x: nn.Sequential.forward(model, x)[0]
    assert make_explicit(model, ADAPTERS, torch.randn(1, 6, 5)) == []


def test_a_packed_sequence_is_refused():
    with pytest.raises(TypeError, match="received PackedSequence: pad the sequences"):
        ExplicitLSTM(lstm("plain"))(pack_sequence([torch.randn(3, 5)]))
