"""Losses of an output's error, compared with full Hessians and Fisher information in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from numeric_toys import Sequence, sited
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from qplug import InputError
from qplug.core.task import CLASSIFICATION, Classification
from qplug.testing.toys import toy_images, toy_vit
from qplug.training.reconstruction.losses import LOSSES, Fisher, LowRank, MeanSquared, Perturbation, Unit
from qplug.training.reconstruction.losses.gradients import TEMPERATURE, gradient
from qplug.training.reconstruction.losses.low_rank import directions
from qplug.training.reconstruction.losses.perturbation import _signs

OUTPUTS, CLASSES = 6, 5


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Noisy(nn.Module):
    """The block with noise on its output; the noise depends only on the input."""

    def __init__(self, block, size):
        super().__init__()
        self.block, self.size = block, size

    def forward(self, x):
        y = self.block(x)
        return y + self.size * torch.sin(1e3 * y + torch.arange(y.shape[-1]).to(y))


def small(tail=torch.tanh):
    """A model with six block outputs and the logits of ``tail``, in float64: small enough for full derivatives."""
    torch.manual_seed(0)
    model = Sequence(lambda m, x: m.head(tail(m.block(x))), block=nn.Linear(4, OUTPUTS), head=nn.Linear(OUTPUTS, 5))
    return model.double()


def windows():
    torch.manual_seed(0)
    return {"windows": nn.Linear(12, 8), "head": nn.Linear(64 * 8, 5)}


def unit_of(model, images, batch=None, name="block", loss="kl", noise=0.1, axis=-1):
    block = Noisy(copy.deepcopy(model.get_submodule(name)), noise)
    return Unit(name, model, block, images.split(batch or len(images)), axis, loss, 0)


def prepared(made, *args, **more):
    made.prepare(unit_of(*args, **more))
    return made


def fisher_of(model, image, temperature=1.0):
    """Jᵀ(diag p − ppᵀ)J/T² of one image, for logits over T: the Hessian of KL at the float model."""

    def logits(y):
        return model.head(torch.tanh(y)) / temperature

    y = model.block(image)
    jacobian = torch.func.jacrev(logits)(y)
    p = logits(y).softmax(-1)
    return (jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian).detach()


def scaled(x):
    return x / x.mean()


# what is computed


def test_the_mean_squared_error_sums_over_channels_only():
    linear, convolution = randn(3, 7, 4), randn(3, 4, 5, 6)
    loss = prepared(MeanSquared(), small(), randn(3, 4))
    assert float(loss(linear, torch.arange(3))) == pytest.approx(float(linear.square().sum()) / 21)
    loss = prepared(MeanSquared(), small(), randn(3, 4), axis=1)
    assert float(loss(convolution, torch.arange(3))) == pytest.approx(float(convolution.square().sum()) / 90)


def test_fisher_estimates_the_diagonal_of_the_fisher_information():
    """One image 1,000 times, each time with its own random labels."""
    model, image = small(), randn(1, 4)
    loss = prepared(Fisher(), model, image.expand(1000, 4), batch=300)
    assert loss.weights.shape == (1000, OUTPUTS)
    assert float(loss.weights.mean()) == pytest.approx(1.0)
    expected = scaled(torch.diagonal(fisher_of(model, image[0])))
    assert torch.allclose(loss.weights.double().mean(0), expected, rtol=0.2)


def test_fisher_weights_each_image_by_its_own_gradient():
    model, images, difference = small(), randn(8, 4), randn(2, OUTPUTS, seed=5)
    loss = prepared(Fisher(), model, images, loss="cross_entropy")
    y = model.block(images).detach().requires_grad_()
    logits = model.head(torch.tanh(y))
    torch.nn.functional.cross_entropy(logits, logits.detach().argmax(-1), reduction="sum").backward()
    weights = scaled(y.grad.square())
    picked = torch.tensor([6, 1])
    expected = (weights[picked] * difference.square()).sum(-1).mean()
    assert float(loss(difference, picked)) == pytest.approx(float(expected), rel=1e-5)


def test_perturbation_finds_the_hessian_of_a_diagonal_quadratic(monkeypatch):
    curvature = torch.tensor([0.1, 3.0, 0.0, 1.0, 20.0], dtype=torch.float64)
    monkeypatch.setattr(
        Classification,
        "divergence",
        lambda _, logits, target, temperature: 0.5 * (curvature * (logits - target).square()).sum(),
    )
    model = Sequence(lambda m, x: m.block(x) * 2.0 + 1.0, block=nn.Linear(4, 5).double())
    loss = prepared(Perturbation(), model, randn(7, 4), batch=3)
    assert torch.allclose(loss.weights[0].double(), scaled(4.0 * curvature), atol=1e-6)


def test_perturbation_averages_the_product_of_hessian_and_signs():
    model, images = small(), randn(9, 4)
    loss = prepared(Perturbation(), model, images, batch=2)
    signs = _signs(torch.zeros(9, OUTPUTS, dtype=torch.float64), 0, 0)
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    changes = [(fisher_of(model, x, TEMPERATURE) @ s).abs() for x, s in zip(images, signs, strict=True)]
    assert loss.weights.shape == (1, OUTPUTS)
    assert torch.allclose(loss.weights[0].double(), scaled(torch.stack(changes).mean(0)), rtol=1e-3)


def test_a_vit_is_invariant_to_a_perturbation_by_ones():
    """The reason for random signs: every LayerNorm removes the mean over the channels."""
    model, _ = sited(toy_vit(), toy_images(1))
    model, images = model.double(), toy_images(2).double()
    ends = []
    for kind in ("ones", "signs"):

        def put(out, *_, kind=kind):
            return out + 1e-2 * (torch.ones_like(out) if kind == "ones" else _signs(out, 0, 0))

        with torch.no_grad():
            target = model(images)
        ends.append(
            gradient(model, "blocks.0", images, lambda z, t=target: CLASSIFICATION.divergence(z, t, TEMPERATURE), put)
            .abs()
            .mean()
        )
    assert ends[0] < 1e-3 * ends[1]  # measured: what the norms' epsilon leaves


def test_low_rank_recovers_a_planted_fisher_information(monkeypatch):
    monkeypatch.setattr(
        Classification,
        "divergence",
        lambda _, logits, target, temperature: 0.5 * (logits - target).square().sum(),
    )
    torch.manual_seed(0)
    model = Sequence(lambda m, x: m.head(m.block(x)), block=nn.Linear(4, OUTPUTS), head=nn.Linear(OUTPUTS, 3)).double()
    planted = (model.head.weight.T @ model.head.weight).detach()
    images = randn(40, 4)
    loss = prepared(LowRank(rank=4), model, images, batch=7)
    found = loss.directions.double() @ loss.directions.double().T
    assert torch.allclose(found / found.trace(), planted / planted.trace(), atol=1e-5)
    difference = Noisy(model.block, 0.1)(images).detach() - model.block(images).detach()
    assert torch.allclose(loss.diagonal[0].double(), scaled((difference @ planted).abs().mean(0)), rtol=1e-4)
    probe = randn(2, OUTPUTS, seed=3)
    parts = [float(part) for part in loss._parts(probe.float())]
    assert parts[1] == pytest.approx(float(torch.einsum("bi,ij,bj->b", probe, found, probe).mean()), rel=1e-4)
    assert float(loss(probe.float(), torch.arange(2))) == pytest.approx(0.5 * sum(parts), rel=1e-6)


def test_low_rank_recovers_the_fisher_information_if_all_images_share_it():
    """One image, small noise that differs between its copies, a nonlinear tail, and the rank of F."""
    model, image = small(), randn(1, 4)
    noise = randn(12, OUTPUTS, seed=1) * 1e-3
    lowered = Sequence(lambda m, x: m.block(x) + noise, block=copy.deepcopy(model.block))
    loss = LowRank(rank=6)
    loss.prepare(Unit("block", model, lowered, [image.expand(12, 4)], -1, "kl", 0))
    found, true = loss.directions.double() @ loss.directions.double().T, fisher_of(model, image[0], TEMPERATURE)
    assert torch.linalg.matrix_rank(true) == CLASSES - 1
    assert torch.allclose(found / found.trace(), true / true.trace(), atol=2e-3)


def test_both_halves_of_low_rank_start_at_the_value_of_the_diagonal_half():
    model, images = small(), randn(20, 4)
    loss = prepared(LowRank(), model, images, batch=6)
    difference = (Noisy(model.block, 0.1)(images) - model.block(images)).detach().float()
    diagonal, low_rank = loss._parts(difference)
    assert float(low_rank) == pytest.approx(float(diagonal), rel=1e-5)
    assert float(diagonal) == pytest.approx(float((loss.diagonal * difference.square()).sum(-1).mean()), rel=1e-5)


def test_directions_within_the_noise_are_omitted():
    """ΔᵀG is symmetric if all images share F; eigenvalues below the asymmetry are not significant."""
    deltas = torch.eye(3, 8, dtype=torch.float64)
    gradients = torch.zeros(3, 8, dtype=torch.float64)
    gradients[0, 0], gradients[1, 1], gradients[1, 2], gradients[2, 1] = 4.0, 0.1, 0.5, -0.5
    found = directions(deltas, gradients)
    assert torch.allclose((found @ found.T).diagonal(), torch.tensor([4.0] + 7 * [0.0]).double())
    assert not directions(deltas, -gradients).any()


def test_gradient_at_an_output_that_the_model_changes_in_place():
    def added(m, x):
        y = m.block(x)
        y += x
        return m.head(torch.tanh(y))

    model = Sequence(added, block=nn.Linear(4, 4), head=nn.Linear(4, 3)).double()
    apart = Sequence(lambda m, x: m.head(torch.tanh(m.block(x) + x)), block=model.block, head=model.head)
    x = randn(5, 4)
    found, expected = (gradient(m, "block", x, lambda logits: logits.square().sum()) for m in (model, apart))
    assert torch.equal(found, expected)
    assert found.abs().min() > 0


# what all of them promise


@pytest.mark.parametrize("block", ["blocks.1", "windows"])
@pytest.mark.parametrize("name", LOSSES)
def test_prepared_buffers_do_not_depend_on_the_batch_size(name, block):
    if block == "windows":  # four of each image
        model = Sequence(lambda m, x: m.head(torch.tanh(m.windows(x.reshape(-1, 12))).reshape(len(x), -1)), **windows())
    else:
        model, _ = sited(toy_vit(), toy_images(1))
    images = toy_images(7)
    buffers = []
    for batch in (3, 7):
        loss = prepared(LOSSES[name](), model, images, batch, block)
        buffers.append(dict(loss.named_buffers()))
    assert len(buffers[0]) == {"mse": 0, "low_rank": 2}.get(name, 1)
    for key, tensor in buffers[0].items():
        other = buffers[1][key]
        if key == "directions":  # an eigenvector's sign says nothing
            tensor, other = tensor @ tensor.T, other @ other.T
        assert tensor.device.type == "cpu"
        assert torch.allclose(tensor, other, rtol=1e-2, atol=1e-3 * float(other.abs().max()))


@pytest.mark.parametrize("name", LOSSES)
def test_calls_can_be_captured_in_a_cuda_graph(name):
    """Traced with tensors without values, so that any read of a value fails."""
    model, _ = sited(toy_vit(), toy_images(1))
    loss = prepared(LOSSES[name](), model, toy_images(6), name="blocks.1")
    difference = torch.randn(3, 5, 16).requires_grad_()
    images = torch.tensor([5, 0, 2])
    traced = make_fx(loss, tracing_mode="fake", _allow_non_fake_inputs=True)(difference, images)
    assert torch.equal(traced(difference, images), loss(difference, images))
    assert torch.autograd.gradcheck(loss.double(), (difference.detach().double().requires_grad_(), images))


@pytest.mark.parametrize("name", LOSSES)
def test_prepare_leaves_the_model_unchanged_and_discards_the_previous_unit(name):
    model, _ = sited(toy_vit(), toy_images(1))
    model.requires_grad_(True)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    loss = prepared(LOSSES[name](), model, toy_images(3), name="patch_embed.proj", axis=1)
    first = loss(torch.ones(2, 16, 2, 2), torch.tensor([0, 1]))
    assert float(first) == pytest.approx(16.0, rel=1.0)
    prepared(loss, model, toy_images(3), name="blocks.0")
    fresh = prepared(LOSSES[name](), model, toy_images(3), name="blocks.0")
    difference, images = torch.randn(2, 5, 16), torch.tensor([2, 0])
    assert torch.equal(loss(difference, images), fresh(difference, images))
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


# what is refused


def test_fisher_without_a_calibration_loss_is_refused():
    with pytest.raises(
        InputError, match=r"gradients of calibration.loss: expected one of kl, .*, received 'none'"
    ) as refused:
        prepared(Fisher(), small(), randn(2, 4), loss="none")
    assert refused.value.where == "block"


@pytest.mark.parametrize("made", [Fisher, Perturbation, LowRank])
def test_outputs_without_influence_are_refused(made):
    model = Sequence(lambda m, x: m.block(x) * 0.0, block=nn.Linear(4, OUTPUTS))
    with pytest.raises(InputError, match="their weights have the mean 0"):
        prepared(made(), model.double(), randn(3, 4))


def test_a_rank_below_one_is_refused():
    with pytest.raises(InputError, match="a rank of at least 1, received 0"):
        LowRank(0)
