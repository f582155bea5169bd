"""Operations that get the same for every image: each row counts once, and each image's gradient."""

import copy

import pytest
import torch
from numeric_toys import Constant, Sequence, calibrated
from torch import nn

from qplug import InputError
from qplug.core.task import CLASSIFICATION
from qplug.models.attention import MatMul
from qplug.quantization.calibration.calibrator import Calibration
from qplug.quantization.calibration.hessian import hessian_traces
from qplug.quantization.calibration.samplers import SampleSize
from qplug.quantization.calibration.serialize import calibration_state, restore_calibration
from qplug.quantization.sites import find_sites

IMAGES = torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(0))
EVERYTHING = SampleSize(rows=10**4, slices=10**4, slice_rows=10**4)


def heads(x):
    return x.view(len(x), -1, 2, 4).transpose(1, 2)


def attention(m, x):
    """Learned queries over the image's tokens, as (1, H, N, D) beside (B, H, N, D)."""
    scores = m.qk(heads(m.q(m.query.values)), heads(m.k(x)))
    return m.head(m.av(scores.softmax(-1), heads(x)).transpose(1, 2).flatten(2).mean(1))


def torch_softmax(m, x):
    """Weights that no image changes: a matmul of two constants, a Softmax of one, and a matmul with one."""
    weights = m.softmax(m.qk(heads(m.q(m.query.values)), heads(m.query.values)))
    return m.head(m.av(weights, heads(x)).transpose(1, 2).flatten(2).mean(1))


def linears(**more):
    return {name: nn.Linear(8, 8) for name in more.pop("names", ())} | {"head": nn.Linear(8, 5)} | more


MODELS = {
    "a table with as many rows as images": (
        lambda m, x: m.head(x.mean(1) + m.b(m.a(m.table.values).tanh()).mean(0)),
        linears(a=nn.Linear(2, 6), b=nn.Linear(6, 8), table=Constant(6, 2)),
    ),
    "a table of pairs": (
        lambda m, x: m.head(x.mean(1) + m.a(m.table.values).mean((0, 1, 2))),
        linears(a=nn.Linear(2, 8), table=Constant(1, 3, 3, 2)),
    ),
    "a picture": (
        lambda m, x: m.head(x.mean(1) + m.a(m.table.values).mean((0, 2, 3))),
        linears(a=nn.Conv2d(4, 8, 3, padding=1, groups=2), table=Constant(1, 4, 5, 6)),
    ),
    "a picture without a batch": (
        lambda m, x: m.head(x.mean(1) + m.a(m.table.values).mean((1, 2))),
        linears(a=nn.Conv2d(4, 8, 3), table=Constant(4, 5, 6)),
    ),
    "two pictures": (
        lambda m, x: m.head(x.mean(1) + m.a(m.table.values).mean((0, 2, 3))),
        linears(a=nn.Conv2d(4, 8, 3, stride=2), table=Constant(2, 4, 5, 6)),
    ),
    "a norm": (
        lambda m, x: m.head(x.mean(1) + m.a(m.norm(m.table.values)).mean(0)),
        linears(a=nn.Linear(4, 8), norm=nn.LayerNorm(4), table=Constant(3, 4)),
    ),
    "queries": (attention, linears(names="qk", query=Constant(1, 3, 8), qk=MatMul(True), av=MatMul())),
    "weights": (
        torch_softmax,
        linears(names="q", query=Constant(1, 4, 8), qk=MatMul(True), av=MatMul(), softmax=nn.Softmax(-1)),
    ),
    "memory with fewer axes": (
        lambda m, x: m.head(
            m.av(m.qk(heads(x), m.query.values).softmax(-1), heads(x)).transpose(1, 2).flatten(2).mean(1)
        ),
        linears(query=Constant(2, 4, 4), qk=MatMul(True), av=MatMul()),
    ),
    "a weight of tokens": (
        lambda m, x: m.head((m.softmax(m.table.values) @ x).mean(1)),
        linears(table=Constant(3, 4), softmax=nn.Softmax(-1)),
    ),
    "one layer on both": (
        lambda m, x: m.head(m.a(x).mean(1) + m.a(m.table.values).mean(0)),
        linears(names="a", table=Constant(3, 8)),
    ),
}


def made(what):
    function, modules = MODELS[what]
    torch.manual_seed(0)
    for module in modules.values():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return Sequence(function, **modules)


def collected(what, batches, loss="cross_entropy", size=EVERYTHING, images=IMAGES):
    return calibrated(made(what), images, loss, batches, size)


@pytest.mark.parametrize("what", [name for name in MODELS if name != "one layer on both"])
def test_statistics_do_not_depend_on_the_batch_size(what):
    one, four, six = (calibration_state(collected(what, batches)[2]) for batches in (1, 4, 6))
    for name, expected in one.items():
        for other in (four, six):
            assert torch.allclose(other[name].double(), expected.double(), rtol=1e-4, atol=1e-9), name


@pytest.mark.parametrize("what", [name for name in MODELS if name.startswith(("a table", "a picture", "two"))])
def test_every_row_counts_once_with_the_gradient_of_each_image(what):
    model, found, calibration = collected(what, 6)
    site = next(site for site in found.sites if site.name == "a.input")
    stats, table = calibration.stats(site), model.table.values
    assert (stats.min, stats.max) == (table.min(), table.max())
    assert torch.equal(stats.image_min, table.min().expand(6))
    mean = table.movedim(site.channel_axis, -1).flatten(0, -2).mean(0)
    assert torch.allclose(stats.channel_mean, mean, atol=1e-6)
    outputs, squares = [], 0.0
    handle = model.a.register_forward_hook(lambda _, __, out: outputs.append(out.requires_grad_(True)))
    for index, image in enumerate(IMAGES.split(1)):
        loss = CLASSIFICATION.sum_of_losses("cross_entropy", model(image), index, 0)
        squares = squares + torch.autograd.grad(loss, outputs[-1])[0].square()
    handle.remove()
    product = stats.product
    shape = (product.importance.shape[1], -1)
    channels = outputs[0].movedim(-3, -1) if isinstance(model.a, nn.Conv2d) else outputs[0]
    expected = squares.movedim(-3, -1) if isinstance(model.a, nn.Conv2d) else squares
    bias = model.a.bias.detach()
    assert len(stats.sample) == channels[..., 0].numel()
    assert torch.allclose(product.output.transpose(0, 1).reshape(shape) + bias, channels.reshape(shape), atol=1e-5)
    assert torch.allclose(product.importance.transpose(0, 1).reshape(shape), expected.reshape(shape), rtol=1e-3)


def test_the_sample_of_a_large_table_is_as_large_as_any_other():
    size = SampleSize(rows=4)
    for batches in (1, 6):
        _, found, calibration = collected("a table with as many rows as images", batches, size=size)
        samples = {site.name: calibration.stats(site).sample for site in found.sites if site.role == "input"}
        assert {name: len(sample) for name, sample in samples.items()} == {"a.input": 4, "b.input": 4, "head.input": 4}


def test_a_constant_operand_belongs_to_every_image_of_the_other():
    _, found, calibration = collected("queries", 4)
    lhs, rhs = (calibration.stats(site) for site in found.sites if site.module == "qk")
    assert lhs.sample.shape == (6, 2, 3, 4)
    assert rhs.sample.shape == (6, 2, 4, 4)
    assert torch.equal(lhs.sample[0], lhs.sample[5])
    assert lhs.product.output.shape == (12, 3, 4)


def test_the_shared_layer_counts_tokens_of_images_and_rows_of_the_table():
    for batches in (1, 6):
        _, found, calibration = collected("one layer on both", batches, loss=None)
        stats = calibration.stats(found.sites[1])
        assert len(stats.sample) == 6 * 4 + 3
        assert len(stats.image_min) == 2 * 6


def test_macs_of_a_constant_are_those_of_one_forward():
    model = made("a table with as many rows as images")
    found = find_sites(model, IMAGES[:1])
    assert {site.module: site.macs for site in found.sites} == {"a": 6 * 2 * 6, "b": 6 * 6 * 8, "head": 8 * 5}
    assert found.total_macs == 72 + 288 + 40
    assert found.uncovered_macs == {}


def test_a_layer_that_mixes_images_has_no_site_and_is_named():
    model = Sequence(lambda m, x: m.head(x.mean(1) + m.a(x.mean(0)).mean(0)), a=nn.Linear(8, 8), head=nn.Linear(8, 5))
    found = find_sites(model, IMAGES[:1])
    assert found.left == {"a": "reads a mixture of the examples of a batch"}
    assert {site.module for site in found.sites} == {"head"}
    assert found.uncovered_macs == {"a": 4 * 8 * 8}


def test_a_constant_that_is_not_finite_is_named():
    model = copy.deepcopy(made("a table with as many rows as images"))
    model.table.values[0, 0] = float("nan")
    with pytest.raises(InputError) as caught:
        calibrated(model, IMAGES, None, 3)
    assert caught.value.where == "a.input"


def test_the_hessian_of_a_constants_weight_is_the_mean_over_images():
    model = made("a table of pairs")

    def loss(outputs):
        return outputs.square().sum()

    def of_weight(weight):
        return loss(torch.func.functional_call(model, {"a.weight": weight}, (IMAGES,))) / 6

    exact = torch.autograd.functional.hessian(of_weight, model.a.weight.detach())
    trace = sum(float(exact[i, j, i, j]) for i in range(8) for j in range(2))
    found = hessian_traces(model, ["a.weight"], IMAGES.split(4), loss, probes=400, tolerance=0.0)["a.weight"]
    assert abs(found.value - trace) < 5 * found.standard_error
    assert found.standard_error < 0.1 * trace


def test_convolutions_of_several_pictures_of_an_image_sample_that_image():
    """Frames or heads folded into the first axis: the sample of an image is of its own pictures."""
    model = Sequence(
        lambda m, x: m.head(m.a(x.view(-1, 1, 4, 4)).view(len(x), -1)), a=nn.Conv2d(1, 2, 3), head=nn.Linear(16, 5)
    )
    one, six = (calibration_state(calibrated(model, IMAGES, "kl", batches)[2]) for batches in (1, 6))
    assert one.keys() == six.keys()
    for name, expected in one.items():
        assert torch.allclose(six[name], expected, rtol=1e-4, atol=1e-9), name


def test_a_batch_behind_the_tokens_is_found():
    model = Sequence(lambda m, x: m.head(m.a(x.transpose(0, 1)).mean(0)), a=nn.Linear(8, 8), head=nn.Linear(8, 5))
    one, six = (calibration_state(calibrated(model, IMAGES, "kl", batches, EVERYTHING)[2]) for batches in (1, 6))
    for name, expected in one.items():
        assert torch.allclose(six[name].double(), expected.double(), rtol=1e-4, atol=1e-9), name
    assert torch.allclose(six["a.input/image_low"], IMAGES.flatten(1).amin(1))


@pytest.mark.parametrize("what", MODELS)
def test_statistics_are_kept_and_restored(what):
    model, found, calibration = collected(what, 3, size=None)
    state = calibration_state(calibration)
    other = Calibration(model, found.sites, len(IMAGES), seed=0)
    restore_calibration(other, state)
    for name, tensor in calibration_state(other).items():
        assert torch.equal(tensor, state[name]), name
