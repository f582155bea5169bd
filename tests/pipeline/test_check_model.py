"""Models are checked before any other work: what they return, whether they repeat it, and in which numbers."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
from interface_toys import RECIPE, Named, Net, Output, images, opened, returning
from torch import nn
from torch.nn import functional as F

import qplug
from qplug import InputError
from qplug.hooks.registry import installed
from qplug.models.float_model import FloatModel
from qplug.pipeline.check_model import check_gradients, check_model
from qplug.pipeline.context import RunContext
from qplug.recipe.schema import recipe_type
from qplug.testing import toy_registry


def refused(model: nn.Module, *words: str, **more: int) -> InputError:
    """The error of the check; each of ``words`` is in it."""
    with pytest.raises(InputError) as error:
        check_model(*opened(model, **more))
    assert error.value.exit_code == 2
    for word in words:
        assert word in str(error.value), str(error.value)
    return error.value


def quantized(model: nn.Module, **changes):
    recipe = recipe_type(installed()).model_validate({**RECIPE, **changes})
    batches = [(images(8), torch.arange(8) % 4)]
    return qplug.quantize(model, [images(8, seed=1)], recipe, evaluation=batches)


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda y: {"out": y}, "a dict with out (1, 4), of which 'out' is read"),
        (lambda y: {"aux": y * 2, "out": y}, "of which 'out' is read"),
        (lambda y: {"scores": y}, "of which 'scores' is read"),
        (lambda y: {"scores": y, "loss": None}, "of which 'scores' is read"),
        (lambda y: (y,), "a tuple of 1: (1, 4), of which 0 is read"),
        (lambda y: [y], "a list of 1: (1, 4), of which 0 is read"),
        (lambda y: Output(None, y), "an Output with loss NoneType, logits (1, 4), of which 'logits' is read"),
        (lambda y: Named(y, y * 2), "of which 'logits' is read"),
        (lambda y: y[..., None, None], "a tensor (1, 4, 1, 1); its axes of size 1 are removed: (1, 4)"),
    ],
)
def test_outputs_of_clear_meaning_are_read_and_said(wrap, said: str) -> None:
    source, stream = opened(returning(wrap))
    check_model(source, stream)
    assert said in source.note
    torch.testing.assert_close(source.module(images()), Net().eval()(images()), rtol=0, atol=0)


def test_a_read_output_holds_through_a_run() -> None:
    plain, wrapped = quantized(Net()), quantized(returning(lambda y: {"logits": y, "features": y * 2}))
    assert wrapped.metrics["quantized.logit_sqnr_db"] == plain.metrics["quantized.logit_sqnr_db"]
    assert [d.site.name for d in wrapped.plan] == [d.site.name for d in plain.plan]
    assert any("of which 'logits' is read" in warning for warning in wrapped.warnings)
    assert wrapped.model is not None
    assert wrapped.model(images(2))["features"].shape == (2, 4)  # as the given model returns it


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda y: (y, y), ["a tuple of 2: (1, 4), (1, 4); expected is a tensor (B, classes)", "returns model(x)[0]"]),
        (lambda y: [y[..., None, None].expand(-1, -1, 2, 2)] * 2, ["a list of 2: (1, 4, 2, 2)", "(B, classes)"]),
        (lambda y: {"cls": y, "boxes": y}, ["a dict with cls (1, 4), boxes (1, 4)", "returns model(x)['cls']"]),
        (lambda y: y[..., None, None].expand(-1, -1, 2, 2), ["a tensor (1, 4, 2, 2)", "the task is classification"]),
        (lambda y: {"out": y[..., None].expand(-1, -1, 3)}, ["a dict with out (1, 4, 3)", "(B, classes)"]),
        (lambda y: y[:, 0], ["a tensor (1); expected is a tensor (B, classes)"]),
        (torch.squeeze, ["a tensor (4); expected is a tensor (B, classes)", "x.squeeze() does not"]),
        (lambda y: y.argmax(-1, keepdim=True), ["of int64", "before any argmax"]),
        (lambda y: None, ["returns None"]),
        (lambda y: y.tolist(), ["a list of 1: list"]),
        (lambda y: {}, ["an empty dict"]),
    ],
)
def test_other_outputs_are_refused_with_what_to_write(wrap, words) -> None:
    refused(returning(wrap), *words)


class FixedBatch(Net):
    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.size = size

    def forward(self, x):
        return super().forward(x).view(self.size, -1)


class Padded(Net):
    """A batch size in a buffer, as exported graphs have it."""

    def forward(self, x):
        return super().forward(x) + torch.zeros(8, 4)


def test_a_batch_size_written_into_the_model_is_named() -> None:
    refused(FixedBatch(8), "it takes a batch of 8, and fails on one of 1", "x.shape[0]")
    refused(Padded(), "returns a tensor (8, 4) for a batch of 1: a batch size seems to be written into it")
    refused(FixedBatch(1), "returns 1 rows for a batch of 2")


class Dropped(Net):
    def forward(self, x):
        return self.head(F.dropout(self.features(x), 0.5))


class Noisy(nn.Module):
    def forward(self, x):
        return x + 0.01 * torch.randn_like(x)


class WithNoise(Net):
    def __init__(self) -> None:
        super().__init__()
        self.noise = Noisy()

    def forward(self, x):
        return self.head(self.noise(self.features(x)))


class TrainedDropout(Net):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        self.drop.train()
        return self.head(self.drop(self.features(x)))


class TrainedNorm(Net):
    def forward(self, x):
        self.bn.train()
        return super().forward(x)


class StaysInTraining(nn.BatchNorm2d):
    """As frozen norms do that ignore train() and eval(), and normalize by the batch all the same."""

    def train(self, mode=True):
        return self


class IgnoresEval(Net):
    def __init__(self) -> None:
        super().__init__()
        self.bn = StaysInTraining(8)


class FlagAlone(nn.Identity):
    """``eval()`` does not reach its flag, which it does not read."""

    def train(self, mode=True):
        return self


class BatchStatistics(Net):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(8, track_running_stats=False)


class FunctionalBatchNorm(Net):
    def features(self, x):
        x = self.conv(x)
        return F.batch_norm(x, None, None, training=True).mean((2, 3))


class MeanOfBatch(Net):
    def forward(self, x):
        y = super().forward(x)
        return y - y.mean(0)


class Counting(Net):
    """Answers otherwise at every call without drawing a number."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Dropped, ["answers differently to the same images", "the model's own forward, before head (Linear)"]),
        (WithNoise, ["answers differently", "is in noise (Noisy)", "training=self.training"]),
        (Counting, ["answers differently", "the model's own forward"]),
        (TrainedDropout, ["sets drop (Dropout) to training mode"]),
        (TrainedNorm, ["sets bn (BatchNorm2d) to training mode"]),
        (IgnoresEval, ["depend on the other images of its batch", "bn (StaysInTraining)"]),
        (BatchStatistics, ["depend on the other images of its batch", "bn (BatchNorm2d)"]),
        (FunctionalBatchNorm, ["depend on the other images of its batch", "own forward, before head (Linear)"]),
        (MeanOfBatch, ["depend on the other images of its batch", "the model's own forward"]),
    ],
)
def test_answers_that_change_are_refused_with_their_place(model, words) -> None:
    refused(model(), *words)


def test_the_check_draws_nothing_from_the_generator() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    refused(Dropped())
    assert torch.equal(torch.rand(2), expected)


class Autocast(Net):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x).float()


class AutocastToTheEnd(Net):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)


class HalfHead(Net):
    def forward(self, x):
        return F.linear(self.features(x).bfloat16(), self.head.weight.bfloat16()).float() + 0 * self.head(
            self.features(x)
        )


class HalfInput(Net):
    def forward(self, x):
        return super().forward(x.half())


class HalfOutput(Net):
    def forward(self, x):
        return super().forward(x).half()


class DoubleNorm(Net):
    def features(self, x):
        return super().features(x).double()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Autocast, ["conv (Conv2d) computes in bfloat16; expected is float32 everywhere", "torch.autocast"]),
        (AutocastToTheEnd, ["conv (Conv2d) computes in bfloat16"]),
        (HalfInput, ["fails on a batch (1, 3, 8, 8) float32, in conv (Conv2d)", "qplug computes in float32"]),
        (DoubleNorm, ["fails on a batch", "in head (Linear)", ".double()"]),
        (HalfOutput, ["of float16; expected are scores in float32"]),
    ],
)
def test_another_precision_is_named_with_its_module(model, words) -> None:
    refused(model(), *words)


def test_what_a_forward_computes_in_half_outside_operations_is_its_own() -> None:
    check_model(*opened(HalfHead()))


class Divided(Net):
    def forward(self, x):
        return super().forward(x) / 0.0


class Log(nn.Module):
    def forward(self, x):
        return (x - 1e6).log()


class WithLog(Net):
    def __init__(self) -> None:
        super().__init__()
        self.log = Log()

    def forward(self, x):
        return self.head(self.log(self.features(x)))


class InPlace(Net):
    def forward(self, x):
        x -= 0.5
        return super().forward(x)


class TwoInputs(Net):
    def forward(self, x, mask):
        return super().forward(x) * mask


def test_other_faults_of_a_forward_are_named() -> None:
    refused(WithLog(), "NaN or infinite on calibration images; the first such values come from log (Log)")
    refused(Divided(), "the first such values come from the model's own forward")
    refused(InPlace(), "changes the images that it gets in place", "x = x - mean")
    refused(TwoInputs(), "needs 2 inputs: x, mask")
    refused(nn.Sequential(nn.Flatten(), nn.Linear(7, 4)), "fails on a batch (1, 3, 8, 8) float32, in 1 (Linear)")


class KeywordOnly(Net):
    def forward(self, *, pixel_values):
        return super().forward(pixel_values)


class KeywordCalls(Net):
    def features(self, x):
        return F.relu(self.bn(input=self.conv(input=x))).mean((2, 3))

    def forward(self, x):
        return self.head(input=self.features(x))


@pytest.mark.parametrize("model", [KeywordOnly, KeywordCalls])
def test_inputs_by_keyword_are_those_by_position(model) -> None:
    plain, own = quantized(Net()), quantized(model())
    assert own.metrics["quantized.logit_sqnr_db"] == plain.metrics["quantized.logit_sqnr_db"]
    assert [(d.site.name, d.quantizer.describe()) for d in own.plan] == [
        (d.site.name, d.quantizer.describe()) for d in plain.plan
    ]
    assert [change.where for change in own.plan.changes] == ["bn → conv"]


class KeywordDict(KeywordCalls):
    """Every difference from one tensor in and one out."""

    def forward(self, *, pixel_values):
        return {"logits": super().forward(pixel_values)[..., None, None], "hidden": pixel_values}


def written(folder, model: type[nn.Module]):
    """A run folder of ``model`` on toy images, and the registry that loads it."""

    class Source(qplug.ModelSource):
        class Config(qplug.Config):
            source: Literal["own"] = "own"

        def load(self) -> FloatModel:
            scale = qplug.Preprocessing((3, 8, 8), (0.5,) * 3, (0.25,) * 3, "bilinear", 1.0)
            return FloatModel.of(model(), "own", scale)

    registry = copy.copy(toy_registry())
    registry.models = {**registry.models, "own": Source}
    data = {part: {"source": "toy", "split": part_of} for part, part_of in PARTS}
    values = {**RECIPE, "model": {"source": "own"}, "data": data, "techniques": [{"use": "baseline.minmax"}]}
    return qplug.run(recipe_type(registry).model_validate(values), out=folder, registry=registry), registry


PARTS = (("calibration", "train"), ("evaluation", "test"))


def test_hooks_of_a_model_hold_in_its_run_folder_and_its_trace(tmp_path) -> None:
    from qplug.export.formats.trace import trace

    result, registry = written(tmp_path / "run", KeywordDict)
    loaded = qplug.load_quantized(tmp_path / "run", registry=registry)
    x = images(3)
    with torch.no_grad():
        expected = result.model(x)
        torch.testing.assert_close(loaded(x), expected, rtol=0, atol=0)
    assert expected.shape == (3, 4)
    program, calls = trace(copy.deepcopy(loaded), list(result.plan.modules()), x[:1])
    assert [path for path, _ in calls] == ["conv", "head"]
    logits, *watched = program.module()(x)
    torch.testing.assert_close(logits, expected)
    assert len(watched) == 4


def test_checks_need_neither_two_images_nor_two_in_a_batch() -> None:
    check_model(*opened(Net(), count=1))
    check_model(*opened(FixedBatch(1), batch_size=1))


def test_a_flag_of_training_that_nothing_reads_is_no_fault() -> None:
    check_model(*opened(nn.Sequential(Net(), FlagAlone())))


def test_a_sound_model_has_no_note_and_no_hook() -> None:
    source, stream = opened(Net())
    check_model(source, stream)
    assert source.note == ""
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in source.module.modules())


class Frozen(Net):
    def features(self, x):
        with torch.no_grad():
            return super().features(x)


class Detached(Net):
    def features(self, x):
        return super().features(x).detach()


class Inferred(Net):
    def features(self, x):
        with torch.inference_mode():
            return super().features(x)


@pytest.mark.parametrize("model", [Frozen, Detached, Inferred])
def test_parts_without_gradients_count_alike_and_are_named(model) -> None:
    result = quantized(model())
    warning = next(text for text in result.warnings if "no gradient of calibration.loss kl reaches conv:" in text)
    assert "every output counts alike there" in warning
    without = quantized(model(), calibration={"loss": "none"})
    conv = [d.quantizer.describe() for d in result.plan if d.site.module == "conv"]
    assert conv == [d.quantizer.describe() for d in without.plan if d.site.module == "conv"]
    assert not any("no gradient" in text for text in without.warnings)


class Whole(Net):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class DetachedOutput(Net):
    def forward(self, x):
        return super().forward(x).detach()


@pytest.mark.parametrize("model", [Whole, DetachedOutput])
def test_outputs_without_any_gradient_are_refused_before_the_work(model) -> None:
    with pytest.raises(InputError, match="depend on no operation with a gradient") as error:
        quantized(model())
    assert "baseline.hessian weighs errors by the gradient of calibration.loss kl" in error.value.what
    assert "calibration: {loss: none}" in error.value.fix
    assert quantized(model(), calibration={"loss": "none"}).metrics["quantized.agreement"] > 0.0
    quantized(model(), techniques=[{"use": "baseline.minmax"}])


class FrozenBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    @torch.no_grad()
    def forward(self, x):
        return self.fc(x)


class WithFrozenBlock(Net):
    def __init__(self) -> None:
        super().__init__()
        self.block = FrozenBlock()

    def forward(self, x):
        return self.head(self.block(self.features(x)))


def test_a_block_that_is_learned_without_gradients_is_named() -> None:
    registry = copy.copy(installed())
    registry.blocks = [*registry.blocks, f"{__name__}:FrozenBlock"]
    steps = [{"use": "baseline.minmax"}, {"use": "brecq.brecq", "iterations": 2}]
    recipe = recipe_type(registry).model_validate({**RECIPE, "techniques": steps})
    with pytest.raises(InputError, match="learned by gradients, and its outputs have none") as error:
        qplug.quantize(WithFrozenBlock(), [images(8)], recipe, registry=registry)
    assert "brecq.brecq" in error.value.where
    assert "block" in error.value.where


def test_trainings_without_any_gradient_are_refused_before_the_work() -> None:
    qat = {"epochs": 1, "batch_size": 4}
    values = {**RECIPE, "qat": qat, "data": {**RECIPE["data"], "training": {"source": "digits", "split": "train"}}}
    recipe = recipe_type(installed()).model_validate({**values, "techniques": [{"use": "baseline.minmax"}]})
    source, stream = opened(Whole())
    with RunContext.open(recipe, None, "cpu", None, (), None) as ctx, pytest.raises(InputError) as error:
        check_gradients(ctx, recipe, source, stream)
    assert "qat trains by gradients" in error.value.what
    assert error.value.where == "qat"


def test_features_without_a_classifier_are_noted() -> None:
    model = Net()
    model.num_classes = 0
    source, stream = opened(model)
    assert check_model(source, stream) == (4,)
    assert source.note == "the model has no classifier (num_classes: 0): its 4 outputs are features, not classes"
