"""Reconstruction of each operation of a block, as in AdaRound."""

from typing import Literal

import pytest
import torch
from cnn_toys import lively
from plugin_toys import toy_swin
from qplug_plugins.brecq import AdaRound, Brecq
from reconstruction_toys import errors, reconstructed
from timm.layers import PatchEmbed
from timm.models.resnet import BasicBlock, ResNet

from qplug import Config, Rate, Reconstruction, SiteKind, Technique, hookimpl, learned_step_sizes
from qplug.models.float_model import FloatModel, Preprocessing
from qplug.pipeline.run import run
from qplug.testing.run import ToyModel, toy_recipe, toy_registry
from qplug.training.reconstruction.losses import LOSSES


@pytest.mark.slow
def test_operations_of_a_block_are_captured_without_earlier_modules(monkeypatch):
    whole = PatchEmbed.forward
    seen = []
    monkeypatch.setattr(PatchEmbed, "forward", lambda self, x: seen.append(None) or whole(self, x))
    reconstructed(Brecq, iterations=1)
    blocks = len(seen)
    reconstructed(AdaRound, iterations=1)
    more_for_the_order_of_operations = len(seen) - 2 * blocks
    assert more_for_the_order_of_operations == 4  # one image in each block


OPERANDS = (SiteKind.QUERY, SiteKind.KEY, SiteKind.POST_SOFTMAX, SiteKind.VALUE)


class Residual(ToyModel):
    """A network whose blocks add the shortcut in place to the output of their last convolution."""

    def load(self):
        torch.manual_seed(0)
        model = lively(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5, channels=(8, 8, 8, 8)))
        return FloatModel.of(model, "toy", Preprocessing((3, 32, 32), (0.5,) * 3, (0.25,) * 3, "nearest", 1.0))


class Windowed(ToyModel):
    """The linears of its attention read windows of an image, four in the first stage."""

    def load(self):
        return FloatModel.of(toy_swin(), "toy", Preprocessing((3, 16, 16), (0.5,) * 3, (0.25,) * 3, "nearest", 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("model", "some"),
    [
        (Residual, {"layer1.0.conv1", "layer1.0.conv2", "fc"}),
        (Windowed, {"layers.0.blocks.1.attn.qkv", "layers.0.blocks.1.mlp.fc1", "head.fc"}),
    ],
)
def test_operations_of_residual_blocks_and_on_windows_learn_by_every_loss(model, some, loss):
    registry = toy_registry(AdaRound)
    registry.models = {**registry.models, "toy": model}
    recipe = toy_recipe(AdaRound, registry=registry, bits=3, iterations=50, rounding_rate=0.02, loss=loss)
    found = errors(run(recipe, registry=registry).plan)
    assert some <= found.keys()
    before, after = map(sum, zip(*found.values(), strict=True))
    assert after < 0.9 * before


class TechniqueCaller(Technique):
    """Learns the step sizes of all activations, including attention's operands, for each operation."""

    class Config(Config):
        use: Literal["test.steps"] = "test.steps"
        each_operation: bool = True

    @hookimpl
    def qplug_reconstruct(self, block):
        learners, rates = learned_step_sizes(block.decisions), {"step_sizes": Rate(0.02)}
        each = self.config.each_operation
        return Reconstruction(learners, rates, iterations=30, batch_size=4, each_operation=each)


@pytest.mark.slow
def test_operations_without_weights_are_learned_too():
    plan = reconstructed(TechniqueCaller, bits=3).plan
    start = reconstructed(Brecq, bits=3, iterations=1, steps=False).plan
    found = errors(plan)
    products = {decision.site.module for decision in plan if decision.site.kind in OPERANDS}
    assert len(products) == 4
    assert products <= found.keys()
    for site, decision in plan.decisions.items():
        if decision.site.module in products and "stays unchanged" not in decision.reason:
            assert decision.quantizer.to_dict() != start.decisions[site].quantizer.to_dict()


@pytest.mark.slow
def test_operations_outside_blocks_without_parameters_are_learned_too():
    registry = toy_registry(TechniqueCaller)
    registry.blocks = []
    plan = run(toy_recipe(TechniqueCaller, registry=registry, bits=3, each_operation=False), registry=registry).plan
    assert all("error of" in decision.reason for decision in plan if decision.site.kind in OPERANDS)
