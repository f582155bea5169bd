"""The calibration pass: independent of the batch size, bounded in memory, without side effects."""

import pytest
import torch
from numeric_toys import Sequence, calibrated, sited, swin, vit
from torch import nn
from torch.nn import functional as F

from qplug import Granularity, InputError, SiteKind, Smoothing
from qplug.core.storage.cache import Cache
from qplug.core.storage.hashing import content_key
from qplug.core.task.choices import LOSSES
from qplug.core.types import MASKED
from qplug.models.smoothing import fold
from qplug.quantization.calibration.calibrator import Calibration, watched_sites
from qplug.quantization.calibration.sample_rows import SampleRows
from qplug.quantization.calibration.samplers import SampleSize
from qplug.quantization.calibration.serialize import calibration_state, restore_calibration
from qplug.quantization.sites import find_sites
from qplug.testing import toy_images, toy_vit

SMALL = {"img_size": 16, "embed_dim": 16, "num_heads": 2}
PARTS = (
    "min",
    "max",
    "channel_min",
    "channel_max",
    "channel_mean",
    "image_min",
    "image_max",
    "head_min",
    "head_max",
    "sample",
)


def inputs_of(model, sites, images):
    """The tensor of each activation site, for all images at once."""
    seen, handles = {}, []
    for site in sites:
        if not site.kind.is_weight:
            place = 1 if site.role == "rhs" else 0
            module = model.get_submodule(site.module)
            handles.append(
                module.register_forward_pre_hook(lambda _, args, n=site.name, p=place: seen.__setitem__(n, args[p]))
            )
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("make", [vit, swin])
@pytest.mark.parametrize("batch", [1, 4, 6])
def test_streaming_statistics_equal_the_statistics_of_one_batch(make, batch):
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model, found, calibration = calibrated(make(), images, batches=batch)
    for name, x in inputs_of(model, found.sites, images).items():
        stats = calibration.stats(next(site for site in found.sites if site.name == name))
        channels = x.movedim(stats.site.channel_axis, -1).flatten(0, -2)
        by_image = x.reshape(6, -1)
        for part, expected in (
            ("min", x.min()),
            ("max", x.max()),
            ("channel_min", channels.amin(0)),
            ("channel_max", channels.amax(0)),
            ("channel_mean", channels.double().mean(0).float()),
            ("image_min", by_image.amin(1)),
            ("image_max", by_image.amax(1)),
        ):
            assert torch.allclose(getattr(stats, part), expected, rtol=1e-4, atol=1e-5), (name, part)
        if stats.site.head_axis is not None:
            heads = x.movedim(stats.site.head_axis, 0).flatten(1)
            assert torch.allclose(stats.head_min, heads.amin(1), atol=1e-5)
            assert torch.allclose(stats.head_max, heads.amax(1), atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_samples_and_gradients_do_not_depend_on_the_batches(loss):
    size = SampleSize(rows=12, slices=6, slice_rows=2)  # less than there is, so that something is drawn
    _, found, whole = calibrated(loss=loss, size=size)
    _, _, split = calibrated(loss=loss, batches=4, size=size)
    for site in found.sites:
        one, other = whole.stats(site), split.stats(site)
        for part in PARTS:
            if getattr(one, part) is not None:
                assert torch.allclose(getattr(one, part), getattr(other, part), rtol=1e-4, atol=1e-5), (site.name, part)
        assert (one.product is None) == (other.product is None)
        if one.product is not None:
            assert torch.allclose(one.product.importance, other.product.importance, rtol=1e-2, atol=1e-7), site.name
        elif one.importance is not None:
            assert torch.allclose(one.importance, other.importance, rtol=1e-2, atol=1e-5), site.name


def test_importance_is_the_square_of_autograds_gradient():
    images, size = toy_images(3), SampleSize(10**6, 10**6, 10**6)
    model, found, calibration = calibrated(images=images, loss="cross_entropy", size=size)
    outputs, handles = {}, []
    for site in found.sites:
        if site.role in ("input", "lhs"):
            module = model.get_submodule(site.module)
            handles.append(
                module.register_forward_hook(
                    lambda _, a, out, n=site.name: (out.retain_grad(), outputs.__setitem__(n, out))[0]
                )
            )
    logits = model(images.clone().requires_grad_(True))
    F.cross_entropy(logits, logits.detach().argmax(-1), reduction="sum").backward()
    for handle in handles:
        handle.remove()
    checked = 0
    for site in found.sites:
        stats = calibration.stats(site)
        if site.role in ("input", "lhs") and stats.product is not None and "patch" not in site.name:
            gradient = outputs[site.name].grad
            expected = gradient.square().flatten(0, 1 if site.role == "lhs" else -2)
            assert torch.allclose(stats.product.importance.reshape(expected.shape), expected, rtol=1e-4, atol=1e-10)
            assert float(expected.max()) > 0
            checked += 1
    assert checked == 4 * 2 + 2 * 2 + 1


def test_importance_of_a_norms_input_excludes_the_residual_stream():
    """Other modules read the residual stream, and the error of a quantizer before the norm does not reach them."""
    images, size = toy_images(3), SampleSize(10**6, 10**6, 10**6)
    model, found, calibration = calibrated(images=images, loss="cross_entropy", size=size)
    norms = [site for site in found.sites if site.kind is SiteKind.LAYERNORM_INPUT]
    inputs = {}

    def before(name):
        def hook(module, args):
            inputs[name] = args[0] + 0.0
            inputs[name].retain_grad()
            return (inputs[name],)

        return hook

    handles = [model.get_submodule(site.module).register_forward_pre_hook(before(site.name)) for site in norms]
    logits = model(images.clone().requires_grad_(True))
    F.cross_entropy(logits, logits.detach().argmax(-1), reduction="sum").backward()
    for handle in handles:
        handle.remove()
    assert len(norms) == 5
    for site in norms:
        expected = inputs[site.name].grad.square().flatten(0, -2)
        importance = calibration.stats(site).importance
        assert torch.allclose(importance.reshape(expected.shape), expected, rtol=1e-4, atol=1e-10)
        assert float(expected.max()) > 0


def test_the_mask_of_shifted_windows_is_not_part_of_the_scores():
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model, found, calibration = calibrated(swin().requires_grad_(False), images)
    scores = [site for site in found.sites if site.kind is SiteKind.SOFTMAX_INPUT]
    assert any(block.attn_mask is not None for layer in model.layers for block in layer.blocks)
    assert all(calibration.stats(site).min > -60.0 for site in scores)  # timm masks by -100


def squared_gradients(loss, logits):
    """The mean over rows of (dL/dz)² for one image's logits, over 20,000 random draws."""
    torch.manual_seed(0)
    rows = logits.repeat(20_000, 1).requires_grad_(True)
    LOSSES[loss](rows).backward()
    return rows.grad.square().mean(0)


def test_the_kl_loss_estimates_the_diagonal_of_its_hessian():
    logits = torch.tensor([2.0, 0.5, -1.0, 0.0])
    p = logits.softmax(-1)
    assert torch.allclose(squared_gradients("kl", logits), p * (1 - p), rtol=0.05)


def test_the_logits_loss_gives_all_classes_equal_weight():
    found = squared_gradients("logits", torch.tensor([20.0, 0.0, -5.0, 1.0]))
    assert torch.allclose(found, torch.full((4,), 0.75), rtol=0.05)  # the diagonal of I − 11ᵀ/4


def test_cross_entropy_is_taken_against_the_models_own_top1():
    logits = torch.tensor([2.0, 0.5, -1.0, 0.0])
    expected = (logits.softmax(-1) - torch.tensor([1.0, 0.0, 0.0, 0.0])).square()
    assert torch.allclose(squared_gradients("cross_entropy", logits), expected, rtol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_has_a_gradient_is_reproducible_and_restores_the_generators(loss):
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    model, images = toy_vit(), toy_images(4)
    found = find_sites(model, images[:1])
    importances = []
    for _ in range(2):
        calibration = Calibration(model, found.sites, 4, seed=3)
        calibration.collect(images.split(2), loss)
        site = next(site for site in found.sites if site.name == "blocks.0.mlp.fc1.weight")
        importances.append(calibration.stats(site).product.importance)
    assert torch.equal(*importances)
    assert float(importances[0].mean()) > 0
    assert torch.equal(torch.rand(2), expected)


def test_images_have_independent_losses():
    _, found, three = calibrated(images=toy_images(3), loss="cross_entropy")
    site = next(site for site in found.sites if site.name == "head.input")
    _, _, alone = calibrated(images=toy_images(3)[:1], loss="cross_entropy")
    assert torch.allclose(
        three.stats(site).product.importance[0, 0], alone.stats(site).product.importance[0, 0], rtol=1e-3
    )


def test_memory_does_not_grow_with_the_images():
    size = SampleSize(rows=16, slices=4, slice_rows=3)
    held = []
    for count in (16, 80):
        _, found, calibration = calibrated(images=toy_images(count), loss="cross_entropy", batches=16, size=size)
        operations = calibration.samplers.values()
        held.append(
            sum(
                rows.values().numel()
                for operation in operations
                for rows in vars(operation).values()
                if isinstance(rows, SampleRows) and rows.length
            )
        )
        for site in found.sites:
            if not site.kind.is_weight:
                assert len(calibration.stats(site).sample) <= 16
    assert held[0] == held[1]


def test_two_calibrations_with_one_seed_are_equal():
    (_, found, one), (_, _, other) = calibrated(), calibrated()
    assert all(torch.equal(one.stats(site).sample, other.stats(site).sample) for site in found.sites)


@pytest.mark.parametrize("loss", [None, "cross_entropy"])
def test_nan_is_refused_with_its_site_and_no_hook_remains(loss):
    class Root(nn.Module):
        def forward(self, x):
            return (x - 0.5).sqrt()

    model = Sequence(lambda m, x: m.b(m.r(m.a(x))).mean(1), a=nn.Linear(4, 4), r=Root(), b=nn.Linear(4, 3))
    model.a.weight.requires_grad_(False)
    x = torch.rand(5, 6, 4) * 4
    found = find_sites(model, x[:1])
    calibration = Calibration(model, found.sites, 5, seed=0)
    with pytest.raises(InputError, match="NaN or infinite") as caught:
        calibration.collect([x], loss)
    assert caught.value.where == "b.input"
    assert not any(m._forward_hooks for m in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]


@pytest.mark.parametrize("loss", [None, "cross_entropy"])
def test_the_model_is_unchanged(loss):
    model = vit(depth=1)
    model.head.requires_grad_(False)
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    calibrated(model, torch.randn(2, 3, 32, 32), loss)
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_no_hook_remains_after_an_error():
    model = toy_vit().requires_grad_(True)
    found = find_sites(model, toy_images(1))
    calibration = Calibration(model, found.sites, 4, seed=0)
    with pytest.raises(RuntimeError):
        calibration.collect([torch.randn(4, 5, 16, 16)], "cross_entropy")
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_a_smoothing_gives_the_statistics_of_a_new_calibration():
    model, found, calibration = calibrated()
    group = found.norm_groups(model)[0]
    smoothing = Smoothing(torch.randn(16), torch.rand(16) + 0.5)
    fold(model, group, smoothing)
    calibration.smooth(group.linears, smoothing)
    again = Calibration(model, found.sites, 6, seed=0)
    again.collect([toy_images(6)])
    for site in found.sites:
        one, other = calibration.stats(site), again.stats(site)
        for part in ("min", "max", "channel_min", "channel_max", "channel_mean", "sample"):
            assert torch.allclose(getattr(one, part), getattr(other, part), rtol=1e-3, atol=1e-4), (site.name, part)
        if one.product is not None:
            assert torch.allclose(one.product.lhs, other.product.lhs, rtol=1e-3, atol=1e-4)
            assert torch.allclose(one.product.rhs, other.product.rhs, rtol=1e-3, atol=1e-4)


def everything(calibration, site):
    """All tensors of the statistics by name."""
    stats = calibration.stats(site)
    parts = {**vars(stats), **(vars(stats.product) if stats.product else {})}
    return {name: value for name, value in parts.items() if isinstance(value, torch.Tensor)}


def same(one, other, sites):
    """Whether two calibrations have equal statistics of every site, bit for bit."""
    for site in sites:
        ours, theirs = everything(one, site), everything(other, site)
        if ours.keys() != theirs.keys() or not all(
            value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]) for name, value in ours.items()
        ):
            return False
    return True


def copied(state):
    return {name: tensor.clone() for name, tensor in state.items()}


def fresh(model, found, images=6, size=None):
    """An empty calibration with another seed, because a restored one draws no rows."""
    return Calibration(model, found.sites, images, seed=99, size=size)


def twice():
    """A linear and a convolution, both called twice in a forward."""
    torch.manual_seed(0)
    model = Sequence(
        lambda m, x: m.a(m.a(m.conv(m.conv(x)).flatten(2).transpose(1, 2))).mean(1),
        conv=nn.Conv2d(3, 3, 3, padding=1),
        a=nn.Linear(3, 3),
    )
    return model, find_sites(model, toy_images(1))


@pytest.mark.parametrize("make", [vit, swin, toy_vit])
@pytest.mark.parametrize("loss", [None, "kl"])
def test_a_restored_calibration_is_equal_bit_for_bit(make, loss):
    model = make()
    images = toy_images(6) if make is toy_vit else torch.randn(6, 3, 32, 32)
    size = SampleSize(rows=12, slices=6, slice_rows=2)
    model, found, calibration = calibrated(model, images, loss=loss, batches=4, size=size)
    restored = fresh(model, found, size=size)
    restore_calibration(restored, copied(calibration_state(calibration)))
    assert len({site.kind for site in found.sites}) >= 12
    assert same(calibration, restored, found.sites)
    assert all(
        torch.equal(value, calibration_state(restored)[name]) for name, value in calibration_state(calibration).items()
    )
    site = next(site for site in found.sites if site.name == "head.weight" or site.name.endswith("fc.weight"))
    one, other = calibration.stats(site), restored.stats(site)
    assert torch.equal(*(s.output_error(s.sample.round(), Granularity.PER_CHANNEL) for s in (one, other)))


def test_modules_with_several_calls_are_restored():
    model, found = twice()
    calibration = Calibration(model, found.sites, 4, seed=0)
    calibration.collect(toy_images(4).split(2), "logits")
    restored = fresh(model, found, images=4)
    restore_calibration(restored, calibration_state(calibration))
    assert len(restored.stats(found.sites[-1]).image_min) == 8
    assert same(calibration, restored, found.sites)


def test_a_state_can_be_cached(tmp_path):
    model, found, calibration = calibrated(loss="cross_entropy")
    Cache(tmp_path).store("statistics", content_key(), calibration_state(calibration), {})
    restored = fresh(model, found)
    restore_calibration(restored, Cache(tmp_path).load("statistics", content_key()).tensors)
    assert same(calibration, restored, found.sites)


def test_restored_calibrations_are_independent():
    model, found, calibration = calibrated(loss="logits")
    state = calibration_state(calibration)
    before = copied(state)
    one, other = fresh(model, found), fresh(model, found)
    restore_calibration(one, state)
    restore_calibration(other, state)
    group = found.norm_groups(model, {})[0]
    smoothing = Smoothing(torch.randn(16), torch.rand(16) + 0.5)
    one.smooth(group.linears, smoothing)
    assert not same(one, other, found.sites)
    assert same(calibration, other, found.sites)
    one = fresh(model, found)
    restore_calibration(one, state)
    one.collect([toy_images(6) * 3], "logits")
    assert not same(one, other, found.sites)
    assert same(calibration, other, found.sites)
    assert all(torch.equal(value, state[name]) for name, value in before.items())


def test_a_smoothing_of_a_restored_calibration():
    model, found, calibration = calibrated(loss="logits")
    restored = fresh(model, found)
    restore_calibration(restored, calibration_state(calibration))
    group = found.norm_groups(model, {})[0]
    smoothing = Smoothing(torch.randn(16), torch.rand(16) + 0.5)
    for each in (calibration, restored):
        each.smooth(group.linears, smoothing)
    assert same(calibration, restored, found.sites)
    with pytest.raises(ValueError, match="before any smoothing"):
        calibration_state(restored)
    with pytest.raises(ValueError, match="before any smoothing"):
        restore_calibration(restored, {})


def test_before_collecting_there_is_no_state():
    model = toy_vit()
    with pytest.raises(ValueError, match="no row was sampled"):
        calibration_state(fresh(model, find_sites(model, toy_images(1))))


OTHERS = {
    "depth": ({"depth": 1}, 6),
    "channels": ({"embed_dim": 24}, 6),
    "heads": ({"num_heads": 4}, 6),
    "hidden channels": ({"mlp_ratio": 3.0}, 6),
    "classes": ({"num_classes": 7}, 6),
    "tokens": ({"patch_size": 4}, 6),
    "images": ({}, 5),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_state_of_another_model_is_refused_and_changes_nothing(what):
    change, images = OTHERS[what]
    model, found, calibration = calibrated(vit(**SMALL), toy_images(6), loss="logits")
    state = calibration_state(calibration)
    restore_calibration(fresh(model, found), state)
    model, found = sited(vit(**{**SMALL, **change}), toy_images(1))
    other = fresh(model, found, images)
    with pytest.raises(ValueError, match="not of this model"):
        restore_calibration(other, state)
    with pytest.raises(ValueError, match="no row was sampled"):
        calibration_state(other)
    other.collect([toy_images(images)])
    again = fresh(model, found, images)
    restore_calibration(again, calibration_state(other))
    assert same(other, again, found.sites)


def test_a_state_of_other_samples_or_other_sites_is_refused():
    model, found, calibration = calibrated()
    with pytest.raises(ValueError, match="not of this model"):
        restore_calibration(fresh(model, found, size=SampleSize(slice_rows=2)), calibration_state(calibration))
    found.sites.pop()
    with pytest.raises(ValueError, match="not of this model"):
        restore_calibration(fresh(model, found), calibration_state(calibration))


@pytest.mark.slow
def test_every_name_and_every_shape_is_checked():
    model, found, calibration = calibrated(loss="logits")
    state = calibration_state(calibration)
    assert {name.rpartition("/")[2] for name in state} == {
        *("low", "high", "total", "count", "head_low", "head_high", "image_low", "image_high"),
        *("inputs", "squares", "others"),
    }
    for name, tensor in state.items():
        wrong = [tensor.unsqueeze(0), *(tensor.narrow(axis, 0, tensor.shape[axis] - 1) for axis in range(tensor.dim()))]
        for each in wrong:
            with pytest.raises(ValueError, match="not of this model"):
                restore_calibration(fresh(model, found), {**state, name: each})
        lacking = {key: value for key, value in state.items() if key != name}
        if name.endswith("/squares"):
            restore_calibration(fresh(model, found), lacking)
        else:
            with pytest.raises(ValueError, match="not of this model"):
                restore_calibration(fresh(model, found), lacking)
    for name in ("more", "head/more", "head.weight/low", ""):
        with pytest.raises(ValueError, match="not of this model"):
            restore_calibration(fresh(model, found), {**state, name: torch.zeros(1)})


def test_progress_counts_images():
    seen = []
    model = toy_vit()
    calibration = Calibration(model, find_sites(model, toy_images(1)).sites, 5, seed=0)
    calibration.collect(toy_images(5).split(2), advance=seen.append)
    assert seen == [2, 4, 5]


def test_the_scope_selects_softmax_and_norm_inputs():
    sites = find_sites(calibrated()[0], toy_images(1)).sites
    kinds = [{s.kind.value for s in watched_sites(sites, a, b)} for a, b in ((0, 0), (1, 0), (0, 1), (1, 1))]
    assert kinds[3] - kinds[0] == {"softmax_input", "layernorm_input"}
    assert kinds[1] - kinds[0] == {"softmax_input"}
    assert kinds[2] - kinds[0] == {"layernorm_input"}


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_of_answers_exclude_padding(loss):
    """(B, 2, L): the loss is the sum over the start and end positions."""
    torch.manual_seed(0)
    logits = torch.randn(1, 2, 6)
    logits[:, :, 4:] = MASKED
    logits.requires_grad_(True)
    LOSSES[loss](logits).backward()
    assert logits.grad[:, :, 4:].abs().max() == 0
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.sum(-1).abs().max() < 1e-5  # what all tokens have in common changes no answer
    if loss == "cross_entropy":
        tokens = logits.detach()[0, :, :4].requires_grad_(True)
        F.cross_entropy(tokens, tokens.argmax(1), reduction="sum").backward()
        torch.testing.assert_close(logits.grad[0, :, :4], tokens.grad)


def test_gradients_of_tokens_begin_at_their_embeddings():
    torch.manual_seed(0)
    model = Sequence(lambda m, x: m.a(m.e(x)).mean(1), e=nn.Embedding(5, 8), a=nn.Linear(8, 3)).eval()
    tokens = torch.randint(5, (6, 4))
    found = find_sites(model, tokens[:1])
    calibration = Calibration(model, found.sites, 6, seed=0)
    calibration.collect(tokens.split(2), "kl")
    product = calibration.stats(found.sites[0]).product
    assert product.importance.shape == (1, 6 * 4, 3)
    assert float(product.importance.sum()) > 0
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
