"""Compiled models, parts and methods become what was written; nothing is compiled here."""

import copy

import torch
from torch import nn
from transformer_toys import WIDTH, Patches, run_of

from qplug.models.eager import eager


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.half(x).relu()

    def half(self, x):
        return self.fc(x) / 2


class Decorated(Layer):
    @torch.compile
    def forward(self, x):
        return self.half(x).relu()

    @torch.compile
    def half(self, x):
        return self.fc(x) / 2


def both():
    part = nn.Sequential(torch.compile(Layer()), Layer())
    part.compile()
    part[1].compile()
    return part


COMPILED = {
    "the model": lambda: torch.compile(Patches(Layer)),
    "a part": lambda: Patches(lambda: torch.compile(Layer())),
    "methods": lambda: Patches(Decorated),
    "in place, and within": lambda: Patches(both),
}


def test_every_operation_of_a_compiled_model_is_quantized():
    for name, build in COMPILED.items():
        result = run_of(build)
        assert {n.rpartition(".")[2] for n in result.plan.modules()} == {"patch", "fc", "head"}, name
        assert not any("_orig_mod" in n for n in result.model.state_dict()), name
        assert result.plan.coverage == 1.0, name


def test_a_copy_calls_its_own_methods():
    model = eager(Patches(Decorated))
    other = copy.deepcopy(model)
    nn.init.zeros_(other.body.fc.weight)
    nn.init.zeros_(other.body.fc.bias)
    x = torch.randn(2, 4, WIDTH)
    assert not other.body(x).any()
    assert model.body(x).any()
