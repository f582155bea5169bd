"""Gradients of models that compute parts without them: where recording starts again, and who is told."""

from __future__ import annotations

import pytest
import torch
from interface_toys import Net, images
from torch import nn
from torch.nn import functional as F

from qplug import InputError
from qplug.core.task import CLASSIFICATION
from qplug.quantization.calibration.calibrator import Calibration
from qplug.quantization.calibration.gradients import traced_operations
from qplug.quantization.calibration.hessian import hessian_traces
from qplug.quantization.sites import find_sites
from qplug.training.reconstruction.losses.gradients import gradient


def calibrated(model: nn.Module, loss: str | None = "kl") -> Calibration:
    model = model.eval().requires_grad_(False)
    found = Calibration(model, find_sites(model, images(1)).sites, 4, seed=0)
    found.collect([images(2), images(2, seed=1)], loss)
    return found


def importance(found: Calibration, module: str) -> torch.Tensor | None:
    product = found.stats(next(site for site in found.sites if site.module == module and site.role != "rhs")).product
    return None if product is None else product.importance


class Frozen(Net):
    def features(self, x):
        with torch.no_grad():
            return super().features(x)


def test_recording_starts_again_behind_a_frozen_part():
    frozen, plain = calibrated(Frozen()), calibrated(Net())
    assert frozen.without_gradient() == ["conv"]
    assert plain.without_gradient() == []
    assert importance(frozen, "conv") is None
    torch.testing.assert_close(importance(frozen, "head"), importance(plain, "head"), rtol=1e-5, atol=0)


class InPlace(Frozen):
    """The head's output, at which recording starts, is changed in place."""

    def forward(self, x):
        return self.head(self.features(x)).add_(1)


class InPlaceTwice(Net):
    def forward(self, x):
        return F.relu_(super().forward(x)).add_(1)


def test_outputs_that_are_changed_in_place():
    assert importance(calibrated(InPlace()), "head") is not None
    with pytest.raises(InputError, match=r"changes a tensor in place that its gradient reads: .*output 0 of Relu"):
        calibrated(InPlaceTwice())


class Twice(Net):
    """One head called with and without gradients, as a momentum branch does; ``first`` is which comes first."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first

    def forward(self, x):
        calls = [self.head(self.features(x))] if self.first else []
        with torch.no_grad():
            calls.append(self.head(self.features(-x)))
        calls += [] if self.first else [self.head(self.features(x))]
        return calls[0] + calls[1]


@pytest.mark.parametrize("first", [True, False])
def test_an_operation_with_calls_of_both_kinds_counts_alike(first):
    found = calibrated(Twice(first))
    assert "head" in found.without_gradient()
    assert importance(found, "head") is None


class Unused(Net):
    """A second call of the head whose output nothing reads."""

    def forward(self, x):
        out = super().forward(x)
        self.head(self.features(x))
        return out


def test_a_call_that_nothing_reads_has_gradient_0():
    found = calibrated(Unused())
    assert found.without_gradient() == []
    weights = importance(found, "head")
    assert weights is not None
    assert weights.shape[1] == found.samplers["head"].inputs.length
    assert float(weights[0, -1].max()) == 0.0
    assert float(weights.max()) > 0.0


class Whole(Net):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


def test_a_loss_without_any_gradient_is_refused():
    with pytest.raises(InputError, match=r"calibration.loss kl needs gradients, and the model's outputs depend on no"):
        calibrated(Whole())
    assert calibrated(Whole(), None).samplers["conv"].inputs.length > 0


def test_gradients_are_switched_on_and_parameters_left_as_they_were():
    model = Net().eval()
    found = Calibration(model, find_sites(model, images(1)).sites, 2, seed=0)
    with torch.no_grad():
        found.collect([images(2)], "kl")
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Masked(nn.Module):
    """Attention of the pixels' rows with a mask in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.qk, self.softmax, self.head = nn.Linear(8, 8), nn.Softmax(-1), nn.Linear(8, 4)
        self.register_buffer("mask", torch.full((8, 8), float("-inf")).triu(1))

    def forward(self, x):
        x = self.qk(x)
        return self.head((self.softmax(x @ x.transpose(-2, -1) + self.mask) @ x).mean((1, 2)))


def test_a_mask_in_the_input_of_a_softmax_is_named():
    with pytest.raises(InputError, match="the input of a Softmax holds −inf") as error:
        calibrated(Masked(), None)
    assert error.value.where == "softmax.input"
    assert "quantize.scope.softmax: false" in error.value.fix


def test_hessian_traces_and_losses_name_what_has_no_gradient():
    with pytest.raises(InputError, match=r"the outputs depend on conv\.weight without a gradient"):
        hessian_traces(Frozen().eval(), ["conv.weight", "head.weight"], [images(2)], probes=1)
    with pytest.raises(InputError, match=r"the outputs depend on conv\.weight, head\.weight without"):
        hessian_traces(Whole().eval(), ["conv.weight", "head.weight"], [images(2)], probes=1)
    with pytest.raises(InputError, match="needs the gradient at conv"):
        gradient(Frozen().eval(), "conv", images(2), lambda y: CLASSIFICATION.calibration_loss("kl", y))


def test_operations_that_return_several_tensors_are_left_alone():
    recurrent, x = nn.LSTM(3, 4).eval(), torch.randn(2, 1, 3)
    with traced_operations(recurrent, [recurrent]):
        out, _ = recurrent(x)
    assert not out.requires_grad
