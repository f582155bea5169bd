"""What a float model may hold: finite weights, masks of −inf, and operations that can be replaced."""

from __future__ import annotations

import pytest
import torch
from interface_toys import SIZE, Net, images
from torch import nn

from qplug import InputError
from qplug.models.float_model import FloatModel, Preprocessing

SCALE = Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3, "bilinear", 1.0)


def with_buffer(name: str, values: torch.Tensor, persistent: bool = True) -> nn.Module:
    model = Net()
    model.register_buffer(name, values, persistent=persistent)
    return model


@pytest.mark.parametrize("persistent", [True, False])
def test_masks_of_infinite_values_are_right(persistent):
    mask = torch.full((4, 4), float("-inf")).triu(1)
    found = FloatModel.of(with_buffer("mask", mask, persistent), "net", SCALE)
    assert torch.equal(found.module.mask, mask)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: m.register_buffer("mask", torch.tensor([0.0, float("nan")])), "mask"),
        (lambda m: m.register_buffer("mask", torch.tensor([0.0, float("nan")]), persistent=False), "mask"),
        (lambda m: m.bn.running_var.fill_(float("inf")), "bn.running_var"),
        (lambda m: m.bn.running_mean.fill_(float("nan")), "bn.running_mean"),
        (lambda m: m.head.bias.data.fill_(float("-inf")), "head.bias"),
        (lambda m: m.register_parameter("gain", nn.Parameter(torch.tensor([torch.inf]))), "gain"),
    ],
)
def test_other_values_that_are_not_finite_are_named(change, named):
    model = Net()
    change(model)
    with pytest.raises(InputError, match=f"the weights of net hold NaN or infinite values, in {named}\n"):
        FloatModel.of(model, "net", SCALE)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_models_whose_operations_cannot_be_replaced_are_refused():
    model = Net()
    model.head = nn.LazyLinear(4)
    with pytest.raises(InputError, match=r"2 tensors of net have no shape yet: head\.weight, head\.bias"):
        FloatModel.of(model, "net", SCALE)
    traced = torch.jit.trace(Net().eval(), images(2))
    with pytest.raises(InputError, match=r"net is scripted or traced by torch\.jit"):
        FloatModel.of(traced, "net", SCALE)
