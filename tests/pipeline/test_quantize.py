"""A model in memory goes the same way as one of a recipe, with its own data."""

import pytest
import torch
from numeric_toys import vit
from qplug_plugins.baseline import MinMax
from torch.utils.data import DataLoader, TensorDataset

import qplug
from qplug import InputError
from qplug.testing.run import toy_recipe, toy_registry


def recipe(registry, bits=8):
    return toy_recipe(MinMax, registry=registry, bits=bits)


def loader(count, seed, labels=True):
    torch.manual_seed(seed)
    inputs, classes = torch.randn(count, 3, 32, 32), torch.arange(count) % 5
    return DataLoader(TensorDataset(inputs, classes) if labels else TensorDataset(inputs), batch_size=4)


@pytest.fixture(scope="module")
def registry():
    return toy_registry(MinMax)


def batches(seed, count=8):
    torch.manual_seed(seed)
    return [torch.randn(4, 3, 32, 32) for _ in range(count // 4)]


def test_the_model_that_comes_back_is_quantized_and_the_given_one_is_not(registry):
    model, inputs = vit().eval(), batches(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = qplug.quantize(model, inputs, recipe(registry), evaluation=loader(12, 1), registry=registry)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        expected, found = model(inputs[0]), result.model(inputs[0])
    assert not torch.equal(expected, found)
    assert (found - expected).norm() < 0.1 * expected.norm()
    assert result.metrics["images.calibration"] == 8
    assert result.metrics["images.evaluation"] == 12
    assert 0.0 <= result.metrics["quantized.agreement"] <= 1.0
    assert result.folder is None


def test_without_evaluation_data_costs_are_left(registry):
    result = qplug.quantize(vit(), loader(8, 0), recipe(registry, 4), registry=registry)
    assert "quantized.top1" not in result.metrics
    assert result.metrics["bits.weights_mean"] == 4
    assert result.metrics["coverage.macs"] == 1.0


def test_it_is_the_plan_of_a_run_on_the_same_model_and_images(registry):
    """The toy source's model and images, given by hand."""
    from qplug.data.stream import Stream

    wanted = qplug.run(recipe(registry, 4), registry=registry)
    source = registry.models["toy"](registry.models["toy"].Config()).load()
    images = registry.datasets["toy"](registry.datasets["toy"].Config(split="train")).open(0)
    stream = Stream(images, source.preprocessing, 32)
    found = qplug.quantize(source.module, stream, recipe(registry, 4), registry=registry)
    assert {n: d.quantizer.to_dict() for n, d in found.plan.decisions.items()} == {
        n: d.quantizer.to_dict() for n, d in wanted.plan.decisions.items()
    }


def test_what_cannot_be_is_refused(registry):
    with pytest.raises(InputError, match="no examples"):
        qplug.quantize(vit(), [], recipe(registry), registry=registry)
    with pytest.raises(InputError, match="expected tensors"):
        qplug.quantize(vit(), [{"image": torch.zeros(1)}], recipe(registry), registry=registry)
    same = batches(0)
    pairs = [(batch, torch.zeros(4, dtype=torch.int64)) for batch in same]
    with pytest.raises(InputError, match="share 8 examples"):
        qplug.quantize(vit(), same, recipe(registry), evaluation=pairs, registry=registry)
    trains = recipe(registry).model_copy(update={"qat": object()})
    with pytest.raises(InputError, match="without training"):
        qplug.quantize(vit(), same, trains, registry=registry)
