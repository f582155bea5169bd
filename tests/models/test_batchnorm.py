"""BatchNorms are folded if they alone read their input; all others are listed with the reason."""

import copy
import re

import pytest
import timm
import torch
from cnn_toys import FAMILIES, family, lively
from numeric_toys import Sequence
from timm.layers.norm_act import BatchNormAct2d, FrozenBatchNormAct2d
from timm.models.byobnet import RepVggBlock
from timm.models.fastvit import MobileOneBlock, RepMixer
from timm.models.repvit import RepVggDw
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from qplug.models.adapters import ADAPTERS, make_explicit
from qplug.models.batchnorm import BY, MERGED, REASON, REASON_BEHIND, Folding, fold_batchnorms
from qplug.models.blocks import BLOCKS
from qplug.models.equivalence import LARGEST_CHANGE
from qplug.quantization.sites import find_sites
from qplug.training.reconstruction.blocks import find_blocks

IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
OTHERS = torch.randn(3, 3, 45, 38, generator=torch.Generator().manual_seed(1))


def distance(output, expected):
    return float((output - expected).norm() / expected.norm())


def batchnorms(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@pytest.fixture(scope="module", params=FAMILIES)
def prepared(request):
    """A family's name, its original model, the model prepared for its sites, and the folding."""
    model = family(request.param)
    before = copy.deepcopy(model)
    make_explicit(model, ADAPTERS, IMAGE)
    return request.param, before, model, fold_batchnorms(model, IMAGE)


def test_every_family_computes_the_same_without_a_batchnorm(prepared):
    _, before, model, folding = prepared
    assert batchnorms(model) == []
    assert folding.left == {}
    assert folding.note() == []
    assert len(folding.changes) == len(batchnorms(before))
    assert {(change.technique, change.preserves) for change in folding.changes} == {(BY, True)}
    assert distance(model(IMAGE), before(IMAGE)) < LARGEST_CHANGE / 10
    assert distance(model(OTHERS), before(OTHERS)) < LARGEST_CHANGE / 10  # sizes with another SAME padding


def test_every_mac_of_every_family_has_sites(prepared):
    _, _, model, _ = prepared
    site_map = find_sites(model, IMAGE)
    assert site_map.uncovered_macs == {}
    assert sum(site.macs for site in site_map.sites if site.kind.is_weight) == site_map.total_macs > 0
    operations = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert {site.module for site in site_map.sites if site.kind.is_weight} == set(operations)
    assert {type(model.get_submodule(name)) for name in operations} == {nn.Conv2d, nn.Linear}


MOBILE = r"blocks\.\d\.\d"
CUTS = {
    "resnet": (["conv1.0", "conv1.3", "conv1.6"], r"layer\d\.\d", ["fc"]),
    "resnet_bottleneck": (["conv1"], r"layer\d\.\d", ["fc"]),
    "mobilenetv1": (["conv_stem"], MOBILE, ["classifier"]),
    "mobilenetv2": (["conv_stem"], MOBILE, ["conv_head", "classifier"]),
    "mobilenetv3": (["conv_stem"], MOBILE, ["conv_head", "classifier"]),
    "mobilenetv3_same": (["conv_stem.conv"], MOBILE, ["conv_head", "classifier"]),
    "mnasnet": (["conv_stem"], MOBILE, ["conv_head", "classifier"]),
    "regnetx": (["stem.conv"], r"s\d\.b\d", ["head.fc"]),
}


def test_every_family_is_split_into_blocks_and_single_operations(prepared):
    name, _, model, _ = prepared
    operations = dict.fromkeys(site.module for site in find_sites(model, IMAGE).sites)
    first, pattern, last = CUTS[name]
    inner = [path for path, _ in model.named_modules() if re.fullmatch(pattern, path)]
    assert len(inner) >= 4
    assert find_blocks(model, operations, IMAGE, BLOCKS) == [*first, *inner, *last]


# pairs are found by the traced forward


def conv(**more):
    return nn.Conv2d(3, 4, 3, bias=False, **more)


def norm(**more):
    return nn.BatchNorm2d(4, **more)


def folded(function, image=IMAGE, **modules):
    """The model of ``function(self, x)`` and its folding, after the check that its output did not change."""
    torch.manual_seed(0)
    model = lively(Sequence(function, **modules))
    before = copy.deepcopy(model)
    folding = fold_batchnorms(model, image)
    now, then = model(image), before(image)
    for output, expected in zip(*[x if isinstance(x, tuple) else (x,) for x in (now, then)], strict=True):
        assert distance(output, expected) < 1e-6
    return model, folding


def test_names_and_the_order_of_definition_do_not_matter():
    model, folding = folded(
        lambda m, x: m.b(m.a(x)) + m.d(m.c(x)), d=norm(), a=conv(), b=norm(affine=False), c=nn.Conv2d(3, 4, 3)
    )
    assert [change.where for change in folding.changes] == ["d → c", "b → a"]
    assert model.a.bias.shape == (4,)
    assert [type(m) for m in (model.b, model.d)] == [nn.Identity, nn.Identity]


def test_the_bias_and_weight_are_those_of_the_equation():
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 3), norm(eps=0.1)))
    (c, n), weight, bias = model, model[0].weight.double(), model[0].bias.double()
    factor = n.weight.double() / (n.running_var.double() + 0.1).sqrt()
    fold_batchnorms(model, IMAGE)
    assert torch.equal(c.weight, (weight * factor.view(-1, 1, 1, 1)).float())
    assert torch.allclose(c.bias, ((bias - n.running_mean) * factor + n.bias).float(), rtol=1e-6)
    assert not c.weight.requires_grad
    assert not c.bias.requires_grad


def test_a_batchnorm_is_folded_into_a_linear():
    image = torch.randn(1, 6)
    model, folding = folded(lambda m, x: m.norm(m.fc(x)), image, fc=nn.Linear(6, 4), norm=nn.BatchNorm1d(4))
    assert [change.where for change in folding.changes] == ["norm → fc"]
    assert type(model.norm) is nn.Identity


def test_grouped_convolutions_and_frozen_batchnorms():
    _, folding = folded(
        lambda m, x: m.b(m.a(m.n(m.c(x)))),
        c=conv(),
        n=FrozenBatchNorm2d(4),
        a=nn.Conv2d(4, 8, 3, groups=4),
        b=nn.BatchNorm2d(8),
    )
    assert [change.where for change in folding.changes] == ["n → c", "b → a"]


@pytest.mark.parametrize("kind", [BatchNormAct2d, FrozenBatchNormAct2d])
def test_an_activation_stays_under_its_name_and_no_longer_writes_in_place(kind):
    model, _ = folded(lambda m, x: m.norm(m.conv(x)), conv=conv(), norm=kind(4, act_layer=nn.Hardswish))
    assert [(name, type(module)) for name, module in model.norm.named_children()] == [("act", nn.Hardswish)]
    assert model.norm.act.inplace is False
    plain, _ = folded(lambda m, x: m.norm(m.conv(x)), conv=conv(), norm=kind(4, apply_act=False))
    assert type(plain.norm) is nn.Identity


def test_a_module_with_two_names_is_replaced_under_both():
    shared = norm()
    model, folding = folded(lambda m, x: m.b(m.conv(x)), conv=conv(), a=shared, b=shared)
    assert len(folding.changes) == 1
    assert model.a is model.b
    assert type(model.b) is nn.Identity


class Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) * 2


class Weighted(nn.Conv2d):
    def forward(self, x):
        return nn.functional.conv2d(x, self.weight * 2)


LEFT = {
    "an addition reads the convolution": (
        lambda m, x: (lambda y: m.norm(y) + y)(m.conv(x)),
        {},
        "is not alone in reading conv: batch_norm, add",
    ),
    "the convolution is an output of the model": (
        lambda m, x: (lambda y: (m.norm(y), y.flatten(1)))(m.conv(x)),
        {},
        "is not alone in reading conv: batch_norm, the model's output",
    ),
    "a view of the convolution is read": (
        lambda m, x: (lambda y: m.norm(y) + y.view(y.shape).mean())(m.conv(x)),
        {},
        "is not alone in reading conv: batch_norm, mean",
    ),
    "an in-place operation before": (
        lambda m, x: m.norm(m.conv(x).add_(1)),
        {},
        "is not alone in reading conv: add_, batch_norm",
    ),
    "a transpose of channels": (
        lambda m, x: m.norm(m.conv(x[:, :, :6, :6]).transpose(1, 3)),
        {},
        "normalizes another axis than the outputs of conv",
    ),
    "a mean before": (
        lambda m, x: m.norm(m.conv(x).mean((2, 3))),
        {"norm": nn.BatchNorm1d(4)},
        "does not read the output of an nn.Conv2d or nn.Linear as it is, and its own is read by the model's output",
    ),
    "zero padding behind": (
        lambda m, x: m.conv(m.norm(x)),
        {"norm": nn.BatchNorm2d(3), "conv": conv(padding=1)},
        "does not read the output of an nn.Conv2d or nn.Linear as it is, "
        "and the convolution that reads its own pads with zeros",
    ),
    "a residual branch behind": (
        lambda m, x: (lambda y: m.conv(y) + y[:, :1, 2:, 2:])(m.norm(x)),
        {"norm": nn.BatchNorm2d(3)},
        "does not read the output of an nn.Conv2d or nn.Linear as it is, and its own is read by conv2d, __getitem__",
    ),
    "a convolution behind that is called twice": (
        lambda m, x: m.conv(m.norm(x)) + m.conv(x),
        {"norm": nn.BatchNorm2d(3)},
        "does not read the output of an nn.Conv2d or nn.Linear as it is, "
        "and its own is read by conv, which is called 2 times",
    ),
    "an activation in place behind": (
        lambda m, x: m.conv(nn.functional.relu_(m.norm(x))),
        {"norm": nn.BatchNorm2d(3)},
        "does not read the output of an nn.Conv2d or nn.Linear as it is, and its own is read by relu_, conv2d",
    ),
    "its own activation": (
        lambda m, x: m.conv(m.norm(x)),
        {"norm": BatchNormAct2d(3)},
        "does not read the output of an nn.Conv2d or nn.Linear as it is, and its ReLU reads its own",
    ),
    "another axis behind": (
        lambda m, x: m.fc(m.norm(x[:, :, :4, :3])),
        {"norm": nn.BatchNorm2d(3), "fc": nn.Linear(3, 2)},
        "does not read the output of an nn.Conv2d or nn.Linear as it is, and fc reads another axis of its own",
    ),
    "two BatchNorms read the convolution": (
        lambda m, x: (lambda y: m.norm(y) + m.other(y))(m.conv(x)),
        {"other": nn.BatchNorm2d(4)},
        "is not alone in reading conv: batch_norm, batch_norm",
    ),
    "the BatchNorm is called twice": (
        lambda m, x: m.norm(m.conv(x)) + m.norm(m.second(x)),
        {"second": nn.Conv2d(3, 4, 3)},
        "is called 2 times",
    ),
    "the convolution is called twice": (
        lambda m, x: m.norm(m.conv(x)) + m.conv(x + 1),
        {},
        "reads conv, which is called 2 times",
    ),
    "statistics of the batch": (
        lambda m, x: m.norm(m.conv(x)),
        {"norm": nn.BatchNorm2d(4, track_running_stats=False)},
        "has no running statistics and normalizes by those of the batch",
    ),
    "another type": (
        lambda m, x: m.norm(m.conv(x)),
        {"norm": Doubled(4)},
        "is a Doubled, not a supported type of BatchNorm",
    ),
    "a convolution of another type": (
        lambda m, x: m.norm(m.conv(x)),
        {"conv": Weighted(3, 4, 3)},
        "does not read the output of an nn.Conv2d or nn.Linear as it is, and its own is read by the model's output",
    ),
    "a weight computed by a hook": (
        lambda m, x: m.norm(m.conv(x)),
        {"conv": nn.utils.spectral_norm(nn.Conv2d(3, 4, 3))},
        "depends on forward hooks of conv",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_other_batchnorms_stay_and_are_listed(case):
    function, more, reason = LEFT[case]
    model, folding = folded(function, **{"conv": conv(), "norm": norm(), **more})
    assert folding.changes == []
    assert folding.left["norm"] == reason
    assert "norm" in batchnorms(model)
    (note,) = folding.note()
    left = f"norm {reason}" if len(folding.left) == 1 else f"2, each of which {reason}: norm, other"
    assert note == f"BatchNorms that could not be folded stay in float: {left}"


def test_the_note_groups_batchnorms_by_their_reasons():
    folding = Folding(left=dict.fromkeys("abcde", "is in training mode") | {"f": "is called 2 times"})
    (note,) = folding.note()
    assert note.endswith("float: 5, each of which is in training mode: a, b, c and 2 more; f is called 2 times")


@pytest.mark.parametrize(("shape", "kind"), [((1, 4, 4), nn.BatchNorm1d), ((1, 4, 4, 4), nn.BatchNorm2d)])
def test_a_batchnorm_over_the_tokens_of_a_linear_stays(shape, kind):
    _, folding = folded(lambda m, x: m.norm(m.fc(x)), torch.randn(shape), fc=nn.Linear(4, 4), norm=kind(4))
    assert folding.left == {"norm": "normalizes another axis than the outputs of fc"}


def test_a_batchnorm_in_training_mode_stays_and_an_unused_one_is_not_listed():
    model = lively(Sequence(lambda m, x: m.norm(m.conv(x)), conv=conv(), norm=norm(), aside=norm()))
    model.norm.train()
    assert fold_batchnorms(model, IMAGE).left == {"norm": "is in training mode"}


def test_a_model_without_batchnorms_only_loses_its_in_place_operations():
    model = Sequence(lambda m, x: m.act(m.conv(x)), conv=conv(), act=nn.ReLU(inplace=True))
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    folding = fold_batchnorms(model, IMAGE)
    assert (folding.changes, folding.left, calls) == ([], {}, [])
    assert model.act.inplace is False


# behind views and moves, and into what reads


def test_moves_between_that_keep_the_channels():
    tokens, linear = torch.randn(2, 5, 6), nn.Linear(6, 4)
    cases = {
        "flattened": (
            lambda m, x: m.norm(m.op(x).flatten(0, 1)).view(2, 5, 4),
            tokens,
            nn.Linear(6, 4),
            nn.BatchNorm1d(4),
        ),
        "channels first": (lambda m, x: m.norm(m.op(x).transpose(1, 2)), tokens, linear, nn.BatchNorm1d(4)),
        "rotated": (lambda m, x: m.norm(m.op(x).transpose(2, 3)), IMAGE, conv(), norm()),
        "rolled": (lambda m, x: m.norm(m.op(x).roll(1, 2).flatten(2)), IMAGE, conv(), nn.BatchNorm1d(4)),
    }
    for what, (function, image, op, bn) in cases.items():
        model, folding = folded(function, image, op=op, norm=bn)
        assert [change.where for change in folding.changes] == ["norm → op"], what
        assert type(model.norm) is nn.Identity


def test_square_sizes_do_not_hide_another_axis():
    """As many tokens as channels: only the forward tells the axes apart."""
    image = torch.randn(3, 4, 4)
    _, folding = folded(lambda m, x: m.norm(m.fc(x).transpose(0, 1)), image, fc=nn.Linear(4, 4), norm=nn.BatchNorm1d(3))
    assert folding.left == {"norm": "normalizes another axis than the outputs of fc"}


BEHIND = {
    "a convolution": (lambda m, x: m.a(m.norm(x)), IMAGE, {"a": conv()}, ["a"]),
    "groups": (lambda m, x: m.a(m.norm(x)), IMAGE, {"a": nn.Conv2d(3, 6, 3, groups=3)}, ["a"]),
    "mirrored padding": (lambda m, x: m.a(m.norm(x)), IMAGE, {"a": conv(padding=1, padding_mode="reflect")}, ["a"]),
    "a linear, dropout between": (
        lambda m, x: m.a(nn.functional.dropout(m.norm(x), training=False)),
        torch.randn(2, 3),
        {"a": nn.Linear(3, 4, bias=False), "norm": nn.BatchNorm1d(3)},
        ["a"],
    ),
    "a linear behind a transpose": (
        lambda m, x: m.a(m.norm(x).transpose(1, 2)),
        torch.randn(2, 3, 3),
        {"a": nn.Linear(3, 4), "norm": nn.BatchNorm1d(3)},
        ["a"],
    ),
    "without gain": (lambda m, x: m.a(m.norm(x)), IMAGE, {"a": conv(), "norm": nn.BatchNorm2d(3, affine=False)}, ["a"]),
}


@pytest.mark.parametrize("case", BEHIND)
def test_a_batchnorm_is_folded_into_what_reads_it(case):
    function, image, modules, into = BEHIND[case]
    model, folding = folded(function, image, **{"norm": nn.BatchNorm2d(3), **modules})
    assert [change.where for change in folding.changes] == [f"norm → {', '.join(into)}"]
    assert folding.changes[0].reason == REASON_BEHIND
    assert type(model.norm) is nn.Identity


def test_a_batchnorm_is_folded_into_all_that_read_it():
    model, folding = folded(
        lambda m, x: (lambda y: m.a(y) + m.b(y.view(y.shape)))(m.norm(x)),
        norm=nn.BatchNorm2d(3),
        a=conv(),
        b=conv(),
    )
    assert [change.where for change in folding.changes] == ["norm → a, b"]
    assert model.a.bias.shape == (4,)


def test_one_convolution_takes_the_batchnorms_on_both_sides():
    model, folding = folded(lambda m, x: m.b(m.conv(m.a(x))), a=nn.BatchNorm2d(3), conv=conv(), b=norm())
    assert [change.where for change in folding.changes] == ["a → conv", "b → conv"]
    assert batchnorms(model) == []


# timm's blocks with branches

FEATURES = torch.randn(1, 8, 9, 7, generator=torch.Generator().manual_seed(0))
BLOCKS_OF_TIMM = {
    "RepVGG": (lambda: RepVggBlock(8, 8), ["0.reparam_conv"]),
    "MobileOne": (lambda: MobileOneBlock(8, 8, 3, num_conv_branches=2), ["0.reparam_conv"]),
    "FastViT's mixer": (lambda: RepMixer(8, 3), ["0.reparam_conv"]),
    "RepViT": (lambda: RepVggDw(8, 3), ["0"]),
}


@pytest.mark.parametrize("block", BLOCKS_OF_TIMM)
def test_branches_without_a_place_for_their_batchnorm_are_merged(block):
    make, convolutions = BLOCKS_OF_TIMM[block]
    torch.manual_seed(0)
    model = nn.Sequential(lively(make()))
    before = copy.deepcopy(model)
    folding = fold_batchnorms(model, FEATURES)
    assert folding.left == {}
    assert [change.where for change in folding.changes] == ["0"]
    assert folding.changes[0].reason == MERGED
    assert [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)] == convolutions
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for x in (FEATURES, torch.cat([FEATURES.flip(2), 2 * FEATURES])):
        assert distance(model(x), before(x)) < 1e-6


def test_a_block_whose_batchnorms_fold_keeps_its_branches():
    model = nn.Sequential(lively(RepVggBlock(8, 6, stride=2)))
    folding = fold_batchnorms(model, FEATURES)
    assert {change.reason for change in folding.changes} == {REASON}
    assert len([module for module in model.modules() if isinstance(module, nn.Conv2d)]) == 2


def test_a_block_that_cannot_be_merged_stays_and_its_batchnorms_are_named():
    model = nn.Sequential(lively(RepVggBlock(8, 8)))
    model[0].conv_1x1 = nn.Identity()  # as a rewrite may leave it
    folding = fold_batchnorms(model, FEATURES)
    assert list(folding.left) == ["0.identity"]
    assert [change.where for change in folding.changes] == ["0.conv_kxk.bn → 0.conv_kxk.conv"]


def test_a_merge_that_changes_the_function_is_undone(monkeypatch):
    def wrong(self):
        self.reparam_conv = nn.Conv2d(8, 8, 3, padding=1)

    monkeypatch.setattr(RepVggBlock, "reparameterize", wrong)
    model = nn.Sequential(lively(RepVggBlock(8, 8)))
    assert list(fold_batchnorms(model, FEATURES).left) == ["0.identity"]
    assert model[0].reparam_conv is None


class OwnFuse(Sequence):
    def fuse(self):
        raise AssertionError("another library's method of the same name")


def test_methods_of_other_libraries_are_not_called():
    inner = lively(OwnFuse(lambda m, x: m.norm(x) + x, norm=nn.BatchNorm2d(8)))
    assert list(fold_batchnorms(nn.Sequential(inner), FEATURES).left) == ["0.norm"]


REAL = pytest.mark.real
PAST_POOLING = {"nextvit_small": ["norm"]}
"""BatchNorms that stay: their reader comes behind a pooling."""
FAMILIES_WITH_BRANCHES = [
    pytest.param("levit_128s", 224, marks=pytest.mark.slow),
    pytest.param("fastvit_t8", 64, marks=pytest.mark.slow),
    pytest.param("repvgg_a0", 32, marks=REAL),
    pytest.param("mobileone_s0", 32, marks=REAL),
    pytest.param("repghostnet_050", 64, marks=REAL),
    pytest.param("repvit_m1", 64, marks=REAL),
    pytest.param("efficientvit_m0", 224, marks=REAL),
    pytest.param("inception_next_atto", 64, marks=REAL),
    pytest.param("nextvit_small", 64, marks=REAL),
]


@pytest.mark.parametrize(("name", "size"), FAMILIES_WITH_BRANCHES)
def test_no_batchnorm_of_these_families_stays_and_other_weights_give_the_same_places(name, size):
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model, again = lively(timm.create_model(name, num_classes=3)), timm.create_model(name, num_classes=3).eval()
    before = copy.deepcopy(model)
    make_explicit(model, ADAPTERS, image)
    folding = fold_batchnorms(model, image)
    assert batchnorms(model) == list(folding.left) == PAST_POOLING.get(name, [])
    assert distance(model(image), before(image)) < LARGEST_CHANGE
    make_explicit(again, ADAPTERS, image)
    assert fold_batchnorms(again, image).changes == folding.changes
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(image), model(image))
