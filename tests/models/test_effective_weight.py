"""Layers whose weight is computed become plain layers with the same outputs; what is more than a layer stays."""

import copy
from typing import Literal

import pytest
import timm
import torch
from numeric_toys import Sequence
from timm.layers.blur_pool import BlurPool2d
from timm.layers.conv2d_same import Conv2dSameExport
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from qplug import Config, Technique, quantize
from qplug.models.adapters import ADAPTERS, make_explicit
from qplug.models.batchnorm import fold_batchnorms
from qplug.models.effective_weight import PLAIN
from qplug.models.float_model import FloatModel
from qplug.testing.run import toy_recipe, toy_registry
from qplug.testing.toys import SIZE

IMAGE = torch.randn(1, 4, 9, 7, generator=torch.Generator().manual_seed(0))


def lively(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module.eval().requires_grad_(False)


def explicit(model, image=IMAGE):
    """The model with plain layers, after the check that it computes the same on two images."""
    before = copy.deepcopy(model)
    replaced = make_explicit(model, ADAPTERS, image)
    for x in (image, torch.cat([image.flip(-1), 3 * image])):
        with torch.no_grad():
            out, expected = model(x), before(x)
        assert float((out - expected).norm() / expected.norm()) < 1e-6
    return replaced


CONVOLUTIONS = {
    "StdConv2d": StdConv2d(4, 6, 3, stride=2),
    "StdConv2d, groups": StdConv2d(4, 6, 3, groups=2, bias=True, dilation=2),
    "StdConv2dSame": StdConv2dSame(4, 6, 3, stride=2),
    "StdConv2dSame, static": StdConv2dSame(4, 6, 3, stride=1),
    "ScaledStdConv2d": ScaledStdConv2d(4, 6, 3, gamma=1.7),
    "ScaledStdConv2dSame": ScaledStdConv2dSame(4, 6, 3, stride=2, gamma=1.7),
    "Conv2dSameExport": Conv2dSameExport(4, 6, 3, stride=2),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_of_timm(kind):
    if kind == "Conv2dSameExport":  # it keeps the padding of its first image
        model = nn.Sequential(lively(copy.deepcopy(CONVOLUTIONS[kind])))
        with torch.no_grad():
            expected = copy.deepcopy(model)(IMAGE)
            make_explicit(model, ADAPTERS, IMAGE)
            assert torch.allclose(model(IMAGE), expected, rtol=1e-5)
    else:
        model = nn.Sequential(lively(copy.deepcopy(CONVOLUTIONS[kind])))
        assert explicit(model) == ["0"]
    (conv,) = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert type(conv) is nn.Conv2d


@pytest.mark.parametrize(("size", "stride", "mode"), [(3, 2, "reflect"), (5, 1, "constant"), (4, 2, "reflect")])
def test_a_blur_is_a_depthwise_convolution(size, stride, mode):
    model = nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), BlurPool2d(5, size, stride, mode)).eval()
    assert explicit(model) == ["1"]
    assert (type(model[1].conv), model[1].conv.groups) == (nn.Conv2d, 5)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2),
        nn.Conv1d(4, 6, 1, bias=False),
        nn.Conv1d(4, 6, 5, padding="same"),
        nn.Conv1d(4, 6, 5, padding=3, padding_mode="circular"),
    ],
    ids=repr,
)
def test_a_convolution_of_sequences_is_one_of_images_with_one_row(conv):
    model = nn.Sequential(nn.Flatten(2), lively(conv), nn.ReLU())
    assert explicit(model) == ["1"]
    assert (type(model[1].conv), model[1].conv.kernel_size[0]) == (nn.Conv2d, 1)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in conv.parameters())


@pytest.mark.parametrize(
    "conv",
    [
        nn.ConvTranspose2d(4, 6, 2, stride=2),
        nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1),
        nn.ConvTranspose2d(4, 6, 6, stride=3, padding=2, output_padding=2, bias=False),
        nn.ConvTranspose2d(4, 6, (3, 6), stride=3, padding=(0, 1), output_padding=(0, 1), groups=2),
        nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1, groups=4),
        nn.ConvTranspose2d(4, 6, 3, padding=1),
    ],
    ids=repr,
)
def test_a_transposed_convolution_is_a_convolution_whose_channels_become_pixels(conv):
    model = nn.Sequential(nn.ReLU(), lively(conv))
    assert explicit(model) == ["1"]
    assert type(model[1].conv) is nn.Conv2d
    assert model[1].conv.weight.numel() == conv.weight.numel()


@pytest.mark.parametrize(
    "conv",
    [
        nn.ConvTranspose2d(4, 6, 3, stride=2),
        nn.ConvTranspose2d(4, 6, 4, stride=(2, 1)),
        nn.ConvTranspose2d(4, 6, 2, dilation=2),
        nn.ConvTranspose2d(4, 6, 2, stride=2, output_padding=1),
    ],
    ids=repr,
)
def test_a_transposed_convolution_of_another_geometry_stays(conv):
    model = nn.Sequential(nn.ReLU(), conv).eval()
    make_explicit(model, ADAPTERS, IMAGE)
    assert model[1] is conv


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized(module):
    parametrize.register_parametrization(module, "bias", Twice())
    parametrize.register_parametrization(module, "weight", Twice())
    return module


def pruned(module):
    prune.l1_unstructured(module, "weight", 0.5)
    if module.bias is not None:
        prune.random_unstructured(module, "bias", 0.3)
    return module


COMPUTED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "weight_norm, old": nn.utils.weight_norm,
    "spectral_norm, old": nn.utils.spectral_norm,
    "own parametrization": parametrized,
    "pruned": pruned,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("make", [lambda: nn.Conv2d(4, 6, 3), lambda: nn.Linear(7, 6), lambda: StdConv2d(4, 6, 3)])
@pytest.mark.parametrize("how", COMPUTED)
def test_computed_parameters_become_their_values(how, make):
    torch.manual_seed(0)
    kind = type(make())
    model = nn.Sequential(COMPUTED[how](make()) if kind is not StdConv2d or how != "own parametrization" else make())
    model = FloatModel.of(model, "toy", None).module  # also a tensor that a hook computed with a graph is copied
    assert explicit(model) == ["0"]
    assert type(model[0]) is (nn.Linear if kind is nn.Linear else nn.Conv2d)
    assert set(model.state_dict()) <= {"0.weight", "0.bias"}
    assert isinstance(model[0].weight, nn.Parameter)
    assert not model[0]._forward_pre_hooks


def test_parameters_of_other_modules_and_of_the_model_itself():
    model = nn.Sequential(parametrized(nn.LayerNorm(7)), nn.Linear(7, 3)).eval()
    assert explicit(model) == ["0"]
    assert type(model[0]) is nn.LayerNorm
    alone = parametrized(nn.Linear(7, 3)).eval()
    assert explicit(alone) == [""]
    assert type(alone) is nn.Linear


def test_a_model_that_is_itself_a_subclass_of_a_layer_stays():
    model = type("Own", (nn.Linear,), {})(7, 3).eval()
    assert explicit(model) == []
    assert [name for name, _ in model.named_modules()] == [""]


class Standardized(nn.Conv2d):
    """A weight-standardized convolution as many projects have their own."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias, self.stride, self.padding)


class Renamed(nn.Linear):
    pass


class Cosine(nn.Linear):
    def forward(self, input):
        return F.linear(input, F.normalize(self.weight), bias=self.bias)


OWN = {
    "standardized": Standardized(4, 6, 3, padding=1, stride=2),
    "renamed": Renamed(7, 5),
    "cosine": Cosine(7, 5, bias=False),
    "padding by name": type("Own", (nn.Conv2d,), {})(4, 6, 3, padding="same", dilation=2),
}


@pytest.mark.parametrize("kind", OWN)
def test_own_subclasses_that_are_one_layer_become_it(kind):
    model = nn.Sequential(lively(copy.deepcopy(OWN[kind])))
    assert explicit(model) == ["0"]
    assert type(model[0]) in PLAIN


def test_a_parameter_that_is_read_as_it_is_stays_the_same():
    model = nn.Sequential(Renamed(7, 7))
    weight = model[0].weight
    explicit(model.eval())
    assert model[0].weight is weight


class Doubled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class Normalizing(nn.Linear):
    def forward(self, x):
        return super().forward(F.normalize(x, dim=-1))


class Lora(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.down, self.up = nn.Linear(sizes[0], 2, False), nn.Linear(2, sizes[1], False)

    def forward(self, x):
        return super().forward(x) + self.up(self.down(x))


class Dynamic(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight * x.mean(), self.bias)


class Reflected(nn.Conv2d):
    def forward(self, x):
        return F.relu_(super().forward(x))


@pytest.mark.parametrize(
    "own", [Doubled(7, 5), Normalizing(7, 5), Lora(7, 5), Dynamic(7, 5), Reflected(4, 6, 3), Renamed(7, 5)]
)
def test_what_is_more_than_a_layer_stays(own):
    reads_attribute = isinstance(own, Renamed)
    if reads_attribute:
        own.scale = 2.0
    model = Sequence(lambda m, x: m.own(x) * getattr(m.own, "scale") if reads_attribute else m.own(x), own=own)  # noqa: B009
    assert explicit(model) == []
    assert model.own is own


@pytest.mark.parametrize("name", ["test_nfnet", "resnetv2_18"])
def test_models_of_timm_have_plain_convolutions_only(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval().requires_grad_(False)
    image = torch.randn(1, 3, 64, 64)
    explicit(model, image)
    fold_batchnorms(model, image)
    layers = [module for module in model.modules() if isinstance(module, PLAIN)]
    assert layers
    assert {type(layer) for layer in layers} <= set(PLAIN)


class Nothing(Technique):
    """A technique without hooks."""

    class Config(Config):
        use: Literal["toy.nothing"] = "toy.nothing"


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("how", ["weight_norm, old", "pruned", "weight_norm"])
def test_a_model_in_memory_is_quantized(how):
    torch.manual_seed(0)
    model = nn.Sequential(COMPUTED[how](nn.Conv2d(SIZE[0], 4, 8, 8)), nn.Flatten(), nn.Linear(16, 5)).eval()
    images = torch.randn(4, *SIZE)
    before = model(images).detach()
    registry = toy_registry(Nothing)
    result = quantize(model, images.split(2), toy_recipe(Nothing, registry=registry, bits=8), registry=registry)
    assert result.plan.coverage == 1.0
    with torch.no_grad():
        assert float((result.model(images) - before).norm() / before.norm()) < 0.05
        assert torch.equal(model(images), before)
