"""Reconstruction of operations that get the same for every image: one entry, and a gradient of each image."""

import copy

import pytest
import torch
from numeric_toys import Constant, Sequence
from qplug_plugins.brecq import AdaRound
from torch import nn

from qplug import InputError, quantize
from qplug.core.task import CLASSIFICATION
from qplug.models.attention import MatMul
from qplug.testing.run import toy_recipe, toy_registry
from qplug.training.reconstruction.capture import capture
from qplug.training.reconstruction.losses import LOSSES, Unit

IMAGES = torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(0))


def net(rows=6):
    torch.manual_seed(0)
    return Sequence(
        lambda m, x: m.head(
            x.mean(1) + m.bias(m.table.values).tanh().mean(0) + m.conv(m.picture.values).mean((0, 2, 3))
        ),
        head=nn.Linear(8, 5),
        bias=nn.Linear(2, 8),
        table=Constant(rows, 2),
        conv=nn.Conv2d(4, 8, 3),
        picture=Constant(1, 4, 5, 5),
    ).requires_grad_(False)


@pytest.mark.parametrize("batch", [1, 2, 3, 6])
@pytest.mark.parametrize(("name", "shape"), [("bias", (1, 6, 8)), ("conv", (1, 1, 8, 3, 3))])
def test_a_constant_is_one_entry_whatever_the_batch_size(name, shape, batch):
    model = net()
    calls = capture(model, name, IMAGES.split(batch))
    assert calls.constant
    assert (calls.entries, calls.outputs.shape) == (1, shape)
    (inputs,), _ = calls.arguments(calls.inputs[torch.tensor([0])], torch.tensor([0]))
    assert torch.equal(model.get_submodule(name)(inputs), calls.outputs[0])
    assert not capture(model, "head", IMAGES.split(batch)).constant


@pytest.mark.parametrize("batch", [1, 2])
def test_a_constant_operand_belongs_to_every_image(batch):
    model = Sequence(
        lambda m, x: m.mm(m.query.values, x.view(-1, 1, 4, 8)).flatten(1), mm=MatMul(True), query=Constant(1, 1, 3, 8)
    )
    calls = capture(model, "mm", IMAGES.split(batch))
    assert not calls.constant
    assert (calls.inputs.shape, calls.outputs.shape) == ((6, 1, 3, 8), (6, 1, 3, 4))
    args, _ = calls.arguments(calls.inputs[[1, 4]], torch.tensor([1, 4]))
    assert torch.equal(model.mm(*args), calls.outputs[[1, 4]])


def test_a_block_with_a_constant_first_and_outputs_of_images_is_refused():
    class Mix(nn.Module):
        def forward(self, query, x):
            return query + x

    model = Sequence(lambda m, x: m.mix(m.query.values, x).mean(1), mix=Mix(), query=Constant(1, 4, 8))
    with pytest.raises(InputError, match="first argument"):
        capture(model, "mix", IMAGES.split(2))


@pytest.mark.parametrize("name", ["bias", "conv"])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_of_a_constant_do_not_depend_on_the_batch_size(loss, name):
    model, values = net(), []
    noisy = copy.deepcopy(model.get_submodule(name))
    noisy.weight += 0.01
    for batch in (1, 4):
        made = LOSSES[loss]()
        axis = 2 if name == "conv" else -1
        made.prepare(Unit(name, model, noisy, IMAGES.split(batch), axis, "kl", 0, CLASSIFICATION, constant=True))
        calls = capture(model, name, IMAGES.split(batch))
        (inputs,), _ = calls.arguments(calls.inputs, torch.tensor([0]))
        values.append(float(made(noisy(inputs) - calls.outputs, torch.tensor([0]))))
    assert values[0] > 0
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_adaround_learns_the_weights_of_constants():
    registry = toy_registry(AdaRound)
    recipe = toy_recipe(AdaRound, registry=registry, bits=3, iterations=30, batch_size=4, rounding_rate=0.02)
    plans = [quantize(net(), IMAGES.split(batch), recipe, registry=registry).plan for batch in (2, 6)]
    for plan in plans:
        assert {"error of bias", "error of conv", "error of head"} <= {
            f"error of {d.site.module}" for d in plan if "error of" in d.reason
        }
