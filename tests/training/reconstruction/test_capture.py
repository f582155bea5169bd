"""Captured inputs and outputs of a block equal those of a forward, in the order of the images."""

import importlib

import pytest
import torch
from numeric_toys import Sequence, mixer, sited
from plugin_toys import toy_swin
from torch import nn
from transformer_toys import Patches, encoder, vision_transformer

from qplug import InputError
from qplug.models.blocks import BLOCKS
from qplug.testing.toys import toy_images, toy_vit
from qplug.training.reconstruction.blocks import block_contains, find_blocks
from qplug.training.reconstruction.capture import capture
from qplug.training.reconstruction.forwards import Forwards


def operations(found):
    return list(dict.fromkeys(site.module for site in found.sites if site.macs))


@pytest.mark.parametrize(
    ("build", "size", "blocks"),
    [
        (toy_vit, 16, ["patch_embed.proj", "blocks.0", "blocks.1", "head"]),
        (mixer, 32, ["stem.proj", "blocks.0", "blocks.1", "head"]),
    ],
)
def test_blocks_in_the_order_of_execution(build, size, blocks):
    image = torch.randn(1, 3, size, size)
    model, found = sited(build(), image)
    assert find_blocks(model, operations(found), image, BLOCKS) == blocks


def test_every_operation_lies_in_one_block_of_a_swin():
    model, found = sited(toy_swin(), toy_images(1))
    blocks = find_blocks(model, operations(found), toy_images(1), BLOCKS)
    for operation in operations(found):
        assert sum(block_contains(block, operation) for block in blocks) == 1
    assert blocks[0] == "patch_embed.proj"
    assert any(block.endswith("downsample.reduction") for block in blocks)


@pytest.mark.parametrize(
    ("build", "blocks"),
    [
        (lambda: Patches(encoder), ["patch", "body.layers.0", "head"]),
        (vision_transformer, ["conv_proj", "encoder.layers.encoder_layer_0", "heads.head"]),
    ],
)
def test_layers_of_torch_are_blocks(build, blocks):
    model, found = sited(build().eval().requires_grad_(False), toy_images(1))
    assert find_blocks(model, operations(found), toy_images(1), BLOCKS) == blocks


def test_a_residual_network_and_a_block_that_is_never_called():
    from timm.models.resnet import BasicBlock, ResNet

    torch.manual_seed(0)
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3, channels=(8, 8, 8, 8)).eval()
    convolutions = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    image = torch.randn(1, 3, 32, 32)
    assert find_blocks(model, convolutions, image, BLOCKS) == ["conv1", *(f"layer{i}.0" for i in (1, 2, 3, 4)), "fc"]
    model.unused = nn.Linear(2, 2)
    assert "unused" not in find_blocks(model, [*convolutions, "unused"], image, BLOCKS)
    with pytest.raises(InputError, match="does not call this block"):
        capture(model, "unused", [image])


@pytest.mark.parametrize("path", BLOCKS)
def test_declared_block_classes_exist(path):
    module, _, name = path.partition(":")
    if module.startswith("transformers."):
        pytest.importorskip("transformers", reason="transformers is not installed, so its blocks cannot be looked at")
    assert issubclass(getattr(importlib.import_module(module), name), nn.Module)


class Block(nn.Sequential):
    """Another class with the name of timm's block."""


def test_blocks_are_found_by_class_and_not_by_name():
    image = torch.randn(1, 4)
    model = nn.Sequential(Block(nn.Linear(4, 4), nn.Linear(4, 4)), type("Derived", (Block,), {})(nn.Linear(4, 4)))
    operations = ["0.0", "0.1", "1.0"]
    assert find_blocks(model, operations, image, BLOCKS) == operations
    assert find_blocks(model, operations, image, [f"{__name__}:Block"]) == ["0", "1"]


def test_captured_calls_equal_the_calls_of_a_forward():
    model, _ = sited(toy_vit(), toy_images(1))
    images = toy_images(5)
    seen = []
    handle = model.blocks[1].register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        model(images)
    handle.remove()
    calls = capture(model, "blocks.1", images.split(2))
    assert torch.allclose(calls.inputs, seen[0][0], atol=1e-5)
    assert torch.allclose(calls.outputs, seen[0][1], atol=1e-5)
    args, kwargs = calls.arguments(calls.inputs[[3]], torch.tensor([3]))
    assert torch.allclose(model.blocks[1](*args, **kwargs), seen[0][1][[3]], atol=1e-5)
    assert not any(module._forward_hooks for module in model.modules())


class Two(nn.Module):
    def forward(self, x, mask, scale=1.0, bias=None):
        return x * mask * scale + bias


def test_other_arguments_are_by_image_or_fixed():
    bias = torch.arange(4.0)
    model = Sequence(lambda m, x: m.block(x, (x.sum(1, keepdim=True) > 0).float(), scale=2.0, bias=bias), block=Two())
    images = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    calls = capture(model, "block", images.split(3))
    picked = torch.tensor([5, 1])
    args, kwargs = calls.arguments(calls.inputs[picked], picked)
    assert torch.allclose(model.block(*args, **kwargs), model(images)[picked])
    assert kwargs["scale"] == 2.0
    assert kwargs["bias"] is bias


def test_a_replayed_block_gives_the_same_calls_without_earlier_modules():
    model, found = sited(toy_vit(), toy_images(1))
    batches = toy_images(5).split(2)
    block = Forwards(model, batches).replay_block("blocks.1")
    model.blocks[0].register_forward_pre_hook(lambda *_: pytest.fail("what lies before the block was run"))
    replayed = [block.capture(operation) for operation in operations(found) if block_contains("blocks.1", operation)]
    model.blocks[0]._forward_pre_hooks.clear()
    whole = [
        capture(model, operation, batches) for operation in operations(found) if block_contains("blocks.1", operation)
    ]
    assert len(whole) > 4
    for one, other in zip(replayed, whole, strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.outputs, other.outputs)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_windows_are_entries_of_an_image(batch):
    model, images = toy_swin(), toy_images(4)
    name = "layers.0.blocks.1.attn.qkv"  # sees 4 windows of 16 tokens
    block = Forwards(model, images.split(batch)).replay_block("layers.0.blocks.1")
    calls, whole = block.capture(name), capture(model, name, images.split(4))
    assert (calls.entries, len(calls.inputs)) == (4, 16)
    assert torch.allclose(calls.inputs, whole.inputs, atol=1e-6)
    picked = torch.tensor([13, 2])
    args, kwargs = calls.arguments(calls.inputs[picked], picked)
    assert torch.allclose(model.get_submodule(name)(*args, **kwargs), whole.outputs[picked], atol=1e-5)


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x, mask, *, scale):
        return self.inner(x * mask * scale)


def test_a_replayed_block_gets_all_arguments_and_is_the_present_block():
    model = Sequence(lambda m, x: m.outer.block(x, (x.sum(1, keepdim=True) > 0).float(), scale=2.0), outer=nn.Module())
    model.outer.block = Masked()
    batches = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).split(2)
    block = Forwards(model, batches).replay_block("outer.block")
    model.outer.block.inner = nn.Linear(4, 3)
    calls, whole = block.capture("outer.block.inner"), capture(model, "outer.block.inner", batches)
    assert torch.equal(calls.inputs, whole.inputs)
    assert torch.equal(calls.outputs, whole.outputs)
    model.outer.block.inner = nn.Flatten(0)
    with pytest.raises(InputError) as refused:
        block.capture("outer.block.inner")
    assert refused.value.where == "outer.block.inner"


@pytest.mark.parametrize(("images", "batch", "rows"), [(6, 3, 6), (6, 3, 3), (4, 4, 4), (6, 4, 1)])
def test_a_fixed_argument_with_as_many_rows_as_a_batch_stays_fixed(images, batch, rows):
    """For one image, the argument has the same length."""
    bias = torch.arange(float(rows)).view(rows, 1)
    model = Sequence(lambda m, x: m.block(x, 1.0, bias=bias), block=Two())
    x = torch.randn(images, rows, 2, generator=torch.Generator().manual_seed(0))
    calls, picked = capture(model, "block", x.split(batch)), torch.tensor([2, 0, 1])
    args, kwargs = calls.arguments(calls.inputs[picked], picked)
    assert torch.equal(model.block(*args, **kwargs), model(x)[picked])
    assert kwargs["bias"] is bias


def test_an_argument_that_is_neither_fixed_nor_by_image_is_refused():
    model = Sequence(lambda m, x: m.block(x, 1.0, bias=x.mean((0, 1))), block=Two())
    with pytest.raises(InputError, match="argument 'bias' is neither") as refused:
        capture(model, "block", torch.randn(6, 3, 2).split(3))
    assert refused.value.where == "block"


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(x), x


def test_a_block_that_cannot_be_captured_is_not_replayed():
    model = Sequence(lambda m, x: m.block(x)[0], block=Pair())
    batches = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).split(2)
    with pytest.raises(InputError):
        capture(model, "block", batches)
    calls = Forwards(model, batches).replay_block("block").capture("block.inner")
    assert torch.equal(calls.outputs, capture(model, "block.inner", batches).outputs)


def test_a_block_that_is_called_twice_is_refused():
    model = Sequence(lambda m, x: m.block(m.block(x)), block=nn.Linear(4, 4))
    with pytest.raises(InputError, match="calls this 2 times"):
        capture(model, "block", [torch.randn(3, 4)])


def test_a_block_whose_first_argument_is_no_batch_is_refused():
    model = Sequence(lambda m, x: m.block(x.sum(0)), block=nn.Linear(4, 4))
    with pytest.raises(InputError, match="as many entries for every image") as refused:
        capture(model, "block", [torch.randn(3, 4)])
    assert refused.value.where == "block"
