"""The sampled product reproduces the operation, and its gradients equal autograd's on the same rows."""

import pytest
import torch
from numeric_toys import Sequence
from torch import nn

from qplug.models.attention import MatMul
from qplug.quantization.calibration.samplers import SampleSize, sampler_of
from qplug.quantization.calibration.serialize import restore_sampler, sampler_shapes, sampler_state

EVERYTHING = SampleSize(rows=10**6, slices=10**6, slice_rows=10**6)


def record(module, *args, batch, images=None, size=EVERYTHING):
    """The sampler after one batch, the output, and the gradient of a random loss at the output."""
    operation = sampler_of(module, images or batch, size, seed=0)
    operation.begin_batch(0, batch)
    out = module(*args)
    operation.record(module, args, out)
    if out.requires_grad:
        gradient = torch.randn_like(out)
        out.backward(gradient)
        return operation, out.detach(), gradient
    return operation, out.detach(), None


def computed(operation, module):
    product = operation.product(module)
    return product.lhs @ product.rhs.transpose(-2, -1)


def rand(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("shape", [(3, 8), (3, 5, 8), (3, 2, 4, 8), (12, 5, 8)])
def test_linear(shape):
    linear, x = nn.Linear(8, 6, bias=False), rand(*shape).requires_grad_(True)
    operation, out, gradient = record(linear, x, batch=3)
    assert torch.allclose(computed(operation, linear)[0], out.reshape(-1, 6), atol=1e-6)
    product = operation.product(linear)
    assert torch.equal(product.importance[0], gradient.reshape(-1, 6).square())
    assert torch.equal(product.lhs[0], x.detach().reshape(-1, 8))


CONVOLUTIONS = {
    "plain": {},
    "stride, padding": {"stride": 2, "padding": (1, 2)},
    "groups": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 4, "out": 8},
    "dilation": {"dilation": 2, "padding": "same"},
    "rectangle": {"kernel_size": (1, 3), "stride": (2, 1)},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "reflected": {"padding": 1, "padding_mode": "reflect"},
}


@pytest.mark.parametrize("what", CONVOLUTIONS)
def test_convolution(what):
    options = {"kernel_size": 3, **CONVOLUTIONS[what]}
    conv = nn.Conv2d(4, options.pop("out", 6), bias=False, **options)
    operation, out, gradient = record(conv, rand(3, 4, 9, 8).requires_grad_(True), batch=3)
    rows = computed(operation, conv).transpose(0, 1).flatten(1)  # (n, M): groups of output channels side by side
    assert torch.allclose(rows, out.permute(0, 2, 3, 1).reshape(len(rows), -1), atol=1e-5)
    importance = operation.product(conv).importance.transpose(0, 1).flatten(1)
    assert torch.equal(importance, gradient.square().permute(0, 2, 3, 1).reshape(len(rows), -1))


@pytest.mark.parametrize("transpose", [True, False])
@pytest.mark.parametrize("windows", [1, 4])
def test_matmul(transpose, windows):
    module = MatMul(transpose_rhs=transpose)
    lhs = rand(3 * windows, 2, 5, 6).requires_grad_(True)
    rhs = rand(3 * windows, 2, 7, 6) if transpose else rand(3 * windows, 2, 6, 7)
    operation, out, gradient = record(module, lhs, rhs, batch=3)
    assert torch.allclose(computed(operation, module), out.flatten(0, 1), atol=1e-6)
    assert torch.equal(operation.product(module).importance, gradient.flatten(0, 1).square())


@pytest.mark.parametrize("transpose", [True, False])
@pytest.mark.parametrize("axes", [(12,), (3, 2, 2)])
def test_matmul_without_an_axis_of_heads_or_with_more_axes(transpose, axes):
    module = MatMul(transpose_rhs=transpose)
    lhs = rand(*axes, 5, 6).requires_grad_(True)
    rhs = rand(*axes, 7, 6) if transpose else rand(*axes, 6, 7)
    operation, out, gradient = record(module, lhs, rhs, batch=3)
    assert torch.allclose(computed(operation, module), out.flatten(0, -3), atol=1e-6)
    assert torch.equal(operation.product(module).importance, gradient.flatten(0, -3).square())


def test_sampled_rows_and_gradients_belong_together():
    linear = nn.Linear(8, 6, bias=False)
    x = rand(4, 50, 8).requires_grad_(True)
    operation, out, gradient = record(linear, x, batch=4, size=SampleSize(rows=12))
    product = operation.product(linear)
    assert product.lhs.shape == (1, 12, 8)
    found = [(x.reshape(-1, 8) == row).all(-1).nonzero().item() for row in product.lhs[0]]
    assert len(set(found)) == 12
    assert [place // 50 for place in found] == [i for i in range(4) for _ in range(3)]
    assert torch.allclose(computed(operation, linear)[0], out.reshape(-1, 6)[found], atol=1e-6)
    assert torch.equal(product.importance[0], gradient.reshape(-1, 6)[found].square())


def test_sampled_patches_and_slices_keep_their_own_gradients():
    conv = nn.Conv2d(3, 4, 3, bias=False)
    operation, out, gradient = record(conv, rand(4, 3, 9, 9).requires_grad_(True), batch=4, size=SampleSize(rows=8))
    rows = computed(operation, conv)[0]
    pixels, importances = out.permute(0, 2, 3, 1).reshape(-1, 4), gradient.square().permute(0, 2, 3, 1).reshape(-1, 4)
    places = [(pixels - row).abs().sum(-1).argmin().item() for row in rows]
    assert len(set(places)) == 8
    assert torch.equal(operation.product(conv).importance[0], importances[places])

    module, size = MatMul(transpose_rhs=True), SampleSize(slices=4, slice_rows=2)
    operation, out, gradient = record(
        module, rand(8, 2, 9, 6).requires_grad_(True), rand(8, 2, 9, 6), batch=4, size=size
    )
    product = operation.product(module)
    assert product.lhs.shape == (8, 2, 6)
    assert product.rhs.shape == (8, 9, 6)
    flat, importance = out.flatten(0, 2), gradient.square().flatten(0, 2)
    for row, weight in zip(computed(operation, module).flatten(0, 1), product.importance.flatten(0, 1), strict=True):
        place = (flat - row).abs().sum(-1).argmin()
        assert torch.allclose(flat[place], row, atol=1e-5)
        assert torch.equal(importance[place], weight)


@pytest.mark.parametrize("images", [1, 7, 100, 1000])
def test_samples_stay_within_their_limits(images):
    size = SampleSize(rows=24, slices=8, slice_rows=4)
    linear, matmul, conv = nn.Linear(4, 3), MatMul(), nn.Conv2d(2, 3, 3)
    for module, shapes, rows in (
        (linear, [(9, 4)], 24),
        (matmul, [(2, 9, 5), (2, 5, 9)], 32 * 2),
        (conv, [(2, 5, 5)], 24),
    ):
        operation = sampler_of(module, images, size, seed=0)
        for first in range(0, images, 10):
            batch = min(10, images - first)
            args = tuple(rand(batch, *shape) for shape in shapes)
            operation.begin_batch(first, batch)
            operation.record(module, args, module(*args))
        product = operation.product(module)
        assert 0 < product.lhs.shape[0] * product.lhs.shape[1] <= rows


@pytest.mark.parametrize("module", [nn.LayerNorm(6), nn.Softmax(-1)])
def test_norms_and_softmax_keep_the_square_of_the_gradient_at_their_input(module):
    leaf = rand(3, 2, 5, 6).requires_grad_(True)
    x = leaf * 2
    x.retain_grad()
    operation = sampler_of(module, 3, EVERYTHING, seed=0)
    operation.begin_batch(0, 3)
    out = module(x)
    operation.record(module, (x,), out)
    (out * rand(3, 2, 5, 6)).sum().backward()
    assert operation.product(module) is None
    sample, importance = operation.sample(None) if isinstance(module, nn.LayerNorm) else operation.sample(_input())
    assert torch.equal(sample.reshape(-1, 6), x.detach().reshape(-1, 6))
    assert torch.equal(importance.reshape(-1, 6), x.grad.square().reshape(-1, 6))


def _input():
    from qplug import Site, SiteKind

    return Site("s.input", SiteKind.SOFTMAX_INPUT, "s", "input", (2, 5, 6))


def test_calls_of_one_module_keep_their_own_gradients():
    """Autograd processes the second call first."""
    linear = nn.Linear(6, 6, bias=False)
    model = Sequence(lambda m, x: m.a(m.a(x)), a=linear)
    operation, outs = sampler_of(linear, 2, EVERYTHING, seed=0), []
    operation.begin_batch(0, 2)

    def hook(module, args, out):
        out.retain_grad()
        outs.append(out)
        operation.record(module, args, out)

    handle = linear.register_forward_hook(hook)
    model(rand(2, 3, 6).requires_grad_(True)).square().sum().backward()
    handle.remove()
    expected = torch.cat([out.grad.reshape(-1, 6).square() for out in outs])
    assert torch.equal(operation.product(linear).importance[0], expected)


def test_without_gradients_there_is_no_importance():
    linear = nn.Linear(8, 6).requires_grad_(False)
    operation, _, gradient = record(linear, rand(3, 5, 8), batch=3)
    assert gradient is None
    assert operation.product(linear).importance is None


def test_the_seed_selects_the_rows():
    x, linear = rand(2, 400, 4), nn.Linear(4, 3)
    samples = []
    for seed in (0, 0, 1):
        operation = sampler_of(linear, 2, SampleSize(rows=10), seed)
        operation.begin_batch(0, 2)
        operation.record(linear, (x,), linear(x))
        samples.append(operation.product(linear).lhs)
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


KEPT = {
    "linear": (nn.Linear(8, 6), [(3, 5, 8)]),
    "norm": (nn.LayerNorm(6), [(3, 5, 6)]),
    "convolution": (nn.Conv2d(4, 6, (3, 2), groups=2), [(3, 4, 9, 8)]),
    "key": (MatMul(transpose_rhs=True), [(12, 2, 5, 6), (12, 2, 7, 6)]),
    "value": (MatMul(transpose_rhs=False), [(3, 2, 5, 7), (3, 2, 7, 6)]),
    "softmax": (nn.Softmax(-1), [(3, 2, 5, 7)]),
    "softmax without heads": (nn.Softmax(-1), [(3, 5, 7)]),
    "softmax of vectors": (nn.Softmax(-1), [(3, 7)]),
    "softmax of blocks and heads": (nn.Softmax(-1), [(3, 2, 2, 5, 7)]),
    "key without heads": (MatMul(transpose_rhs=True), [(12, 5, 6), (12, 7, 6)]),
    "value of blocks and heads": (MatMul(transpose_rhs=False), [(3, 2, 2, 5, 7), (3, 2, 2, 7, 6)]),
}


@pytest.mark.parametrize("what", KEPT)
@pytest.mark.parametrize("gradients", [True, False])
def test_states_have_the_expected_shapes_and_can_be_restored(what, gradients):
    from qplug import Site, SiteKind

    module, shapes = KEPT[what]
    args = [rand(*shape).requires_grad_(gradients) for shape in shapes]
    size = SampleSize(rows=12, slices=6, slice_rows=4)
    operation, _, _ = record(module.requires_grad_(gradients), *args, batch=3, size=size)
    roles = ("lhs", "rhs") if isinstance(module, MatMul) else ("input",)
    heads = -3 if len(shapes[0]) == 4 else None
    sites = {
        role: Site(role, SiteKind.QUERY, "m", role, shape[1:], head_axis=heads)
        for role, shape in zip(roles, shapes, strict=True)
    }
    state = sampler_state(operation)
    assert ("squares" in state) == gradients
    expected = sampler_shapes(operation, module, sites, len(state["inputs"]))
    assert {name: expected[name] for name in state} == {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert expected.keys() - state.keys() == (set() if gradients else {"squares"})

    other = sampler_of(module, 3, size, seed=7)
    restore_sampler(other, state)
    assert all(sampler_state(other)[name].data_ptr() == tensor.data_ptr() for name, tensor in state.items())
    one, again = operation.product(module), other.product(module)
    assert (one is None) == (again is None)
    if one is not None:
        assert torch.equal(one.lhs, again.lhs)
        assert torch.equal(one.rhs, again.rhs)
        assert (again.importance is not None) == gradients
    restore_sampler(other, {name: tensor for name, tensor in state.items() if name != "squares"})
    assert other.importance() is None
