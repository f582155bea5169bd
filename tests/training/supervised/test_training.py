"""Fine-tuning and quantization-aware training inside a run: learned parameters, metrics and messages."""

import json
from typing import Literal

import pytest
import torch
from other_backend import with_other
from torch import nn
from train_toys import Small, recipe

from qplug import Config, InputError, QplugError, Rewrite, Technique, hookimpl, load_quantized
from qplug.cli.report.run import summary_tables
from qplug.core.storage.cache import Cache
from qplug.data.digits import Digits
from qplug.data.loading import batches
from qplug.hooks.registry import backend_of, installed
from qplug.models.float_model import Preprocessing
from qplug.models.zoo import vit_digits
from qplug.pipeline.read_run import read_run
from qplug.pipeline.run import run
from qplug.quantization.accounting import CONVENTIONS, DEFAULT
from qplug.quantization.plan import Plan
from qplug.testing.run import toy_registry
from qplug.training.supervised.config import Learn
from qplug.training.supervised.problem import TrainingProblem, quantized_problem


@pytest.mark.slow
def test_qat_learns_weights_and_scales_and_the_run_folder_reproduces_the_metrics(tmp_path):
    plain = run(recipe(tmp_path))
    settings = {"epochs": 10, "learning_rate": 0.03, "learn": {"zero_points": True}}
    trained = run(recipe(tmp_path, qat=settings), out=tmp_path / "run")
    for name, decision in trained.plan.decisions.items():
        before, after = plain.plan.decisions[name].quantizer, decision.quantizer
        assert not torch.equal(before.scale, after.scale), name
        assert "qat: step" in decision.reason
        assert torch.equal(after.zero_point, after.zero_point.round())
    assert trained.plan.changes[-1].technique == "core.qat"
    assert "10 epochs of 80 images, 50 steps, loss" in trained.plan.changes[-1].reason
    metrics = read_run(tmp_path / "run").metrics
    assert metrics["qat.loss_last"] < 0.75 * metrics["qat.loss_first"]  # 2.2 → 1.1
    assert metrics["qat.held_out_best"] >= metrics["qat.held_out_last"] > metrics["qat.held_out_first"]
    assert read_run(tmp_path / "run").lock.hashes.training_images
    (*_, results) = summary_tables(trained, CONVENTIONS[DEFAULT])
    rows = dict(results.rows)
    assert rows["QAT"].startswith("10 epochs of 80 images, 50 steps: loss 2.")
    assert not any(name.startswith("qat.") for name in rows)
    history = json.loads((tmp_path / "run" / "training.json").read_text())["qat"]
    assert len(history["curve"]["points"]) == 50
    assert [at for at, _ in history["held_out"]] == list(range(0, 51, 5))
    model = load_quantized(tmp_path / "run", allow_code=True)
    images = Digits(Digits.Config(source="digits", split="test", images=50)).open(0)
    prepare = Preprocessing((1, 8, 8), (0.305,), (0.376,), "bilinear", 1.0).transform()
    with torch.inference_mode():
        found = torch.cat([model(x).argmax(1) for x, _ in batches(images, prepare, 32)])
    assert found.tolist() == read_run(tmp_path / "run").evaluation["quantized.top1"].tolist()


@pytest.mark.parametrize("learn", [{"weight_scales": False}, {"activation_scales": False}])
def test_scales_are_fixed_without_request(tmp_path, learn):
    plain = run(recipe(tmp_path)).plan
    trained = run(recipe(tmp_path, qat={"learn": learn})).plan
    for name, decision in trained.decisions.items():
        same = decision.quantizer.to_dict() == plain.decisions[name].quantizer.to_dict()
        assert same == (decision.site.kind.is_weight == ("weight_scales" in learn)), name
        assert ("qat" in decision.reason) != same


@pytest.mark.slow
def test_finetuning_comes_before_folding_and_batchnorms_learn_their_statistics(tmp_path):
    plain = run(recipe(tmp_path), out=tmp_path / "plain")
    tuned = run(recipe(tmp_path, finetune={"epochs": 10, "learning_rate": 0.03}), out=tmp_path / "tuned")
    names = [change.technique for change in tuned.plan.changes]
    assert names == ["core.finetune", "core.fold_batchnorm"]
    assert tuned.metrics["finetuned.top1"] > plain.metrics["float.top1"] + 0.3  # 0.66 against 0.14
    assert tuned.metrics["float.top1"] == plain.metrics["float.top1"]
    assert tuned.metrics["quantized.top1"] > plain.metrics["quantized.top1"] + 0.3
    load_quantized(tmp_path / "tuned", allow_code=True)


def test_batchnorms_that_were_not_folded_keep_their_statistics_in_qat():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), vit_digits())
    task = quantized_problem(model, Plan(), backend_of("brevitas", toy_registry()), Learn())
    task.train()
    assert [module.training for module in task.model[:2]] == [False, True]
    assert task.buffers() == {}


class Bounded(Technique):
    """PACT: min(relu(x), alpha)."""

    class Config(Config):
        use: Literal["toy.bounded"] = "toy.bounded"

    @hookimpl
    def qplug_rewrite_activation(self, name, module):
        return Rewrite(Pact(), preserves=False, reason="bounded")


class Pact(nn.Module):
    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(0.125))

    def forward(self, x):
        return torch.minimum(torch.relu(x), self.alpha)


@pytest.mark.parametrize("asked", [True, False])
def test_bounds_are_learned_on_request(tmp_path, asked):
    given = recipe(tmp_path, qat={"learn": {"bounds": asked}})
    steps = (Bounded.Config(), *given.techniques)
    result = run(given.model_copy(update={"techniques": steps}), registry=toy_registry(Bounded), out=tmp_path / "run")
    model = load_quantized(tmp_path / "run", registry=toy_registry(Bounded), allow_code=True)
    assert (model.act.alpha.item() != 0.125) == asked
    assert sum("training has to make up for it" in w for w in result.warnings) == 1
    tuned = given.model_copy(update={"techniques": steps, "finetune": given.qat})
    assert not any("make up for it" in warning for warning in run(tuned, registry=toy_registry(Bounded)).warnings)


@pytest.mark.slow
def test_the_options_of_training_change_it(tmp_path):
    def loss(**more):
        return run(recipe(tmp_path, finetune={"augment": None, **more})).trainings["finetune"].loss

    plain = loss()
    assert loss(distill={"weight": 0.5, "temperature": 2.0})[0] != plain[0]
    assert loss(label_smoothing=0.0)[0] < plain[0]
    assert loss(ema=0.5) == plain
    assert loss(clip=1e-3)[1:] != plain[1:]
    assert loss(augment={"scale": [0.5, 1.0]})[0] != plain[0]
    assert loss(accumulate=1, workers=1) == plain
    assert loss(precision="bfloat16")[0] == pytest.approx(plain[0], rel=0.02)


def test_parts_of_a_batch_give_its_gradient(tmp_path, monkeypatch):
    """In QAT without dropout, because BatchNorm and dropout depend on the parts."""
    monkeypatch.setattr(Small, "train", lambda self, mode=True: nn.Module.train(self, False))
    settings = {"optimizer": "sgd", "learning_rate": 0.03}
    whole, parts = (run(recipe(tmp_path, qat={"accumulate": n, **settings})).trainings["qat"] for n in (1, 4))
    assert whole.loss == pytest.approx(parts.loss, rel=1e-5)


def test_evaluation_on_training_examples_is_refused(tmp_path):
    given = recipe(tmp_path, qat={})
    data = given.data.model_copy(update={"training": given.data.evaluation})
    with pytest.raises(InputError, match=r"(?s)training and evaluation share 50 examples.*another split"):
        run(given.model_copy(update={"data": data}))


def test_a_diverged_training_names_the_reason_and_the_place(tmp_path):
    with pytest.raises(QplugError) as caught:
        run(recipe(tmp_path, finetune={"learning_rate": 10.0, "optimizer": "sgd", "epochs": 30}))
    text = str(caught.value)
    assert text.startswith("finetune: training diverged in step ")
    assert "of 150" in text
    assert "lower finetune.learning_rate" in text


def test_the_source_of_a_value_that_is_not_finite_is_named(tmp_path, monkeypatch):
    plain = TrainingProblem.train

    def broken(self):
        plain(self)
        if self.name == "qat":
            with torch.no_grad():
                self.model.hidden.bias[0] = float("nan")

    monkeypatch.setattr(TrainingProblem, "train", broken)
    message = (
        r"step 1 of 15 .*the loss is nan; hidden.* is the first module .*; the parameter hidden.bias is not finite"
    )
    with pytest.raises(QplugError, match=message):
        run(recipe(tmp_path, qat={}))


@pytest.mark.slow
def test_a_finished_training_is_cached_by_its_settings(tmp_path):
    cache = Cache(tmp_path / "cache")
    first = run(recipe(tmp_path, qat={}), cache=cache)
    again = run(recipe(tmp_path, qat={"checkpoint_minutes": 3.0}), cache=cache)
    assert again.trainings["qat"].loss == first.trainings["qat"].loss
    assert again.trainings["qat"].held_out == first.trainings["qat"].held_out
    assert again.metrics["cache.seconds_saved"] >= again.trainings["qat"].seconds > 0
    assert again.plan.to_dict() == first.plan.to_dict()
    other = run(recipe(tmp_path, qat={"weight_decay": 0.1}), cache=cache)
    assert other.plan.to_dict() != first.plan.to_dict()


@pytest.mark.slow
def test_a_cached_training_of_another_backend_is_not_used(tmp_path):
    registry, cache = with_other(installed()), Cache(tmp_path / "cache")
    here, there = recipe(tmp_path, qat={}), recipe(tmp_path, qat={}).model_copy(update={"backend": "other"})
    alone = run(there, registry=registry).plan.to_dict()
    assert run(here, registry=registry, cache=cache).plan.to_dict() != alone
    assert run(there, registry=registry, cache=cache).plan.to_dict() == alone


def test_recipes_that_differ_after_fine_tuning_share_its_cache_entry(tmp_path):
    cache = Cache(tmp_path / "cache")
    first = run(recipe(tmp_path, finetune={}), cache=cache)
    other = ("techniques=[{use: baseline.percentile, percentile: 99.0}]", "quantize.weights.bits=6")
    shared = run(recipe(tmp_path, *other, finetune={}), cache=cache)
    assert shared.trainings["finetune"].loss == first.trainings["finetune"].loss
    assert shared.metrics["cache.seconds_saved"] >= shared.trainings["finetune"].seconds > 0
    assert shared.metrics["finetuned.top1"] == first.metrics["finetuned.top1"]
    assert shared.plan.to_dict() != first.plan.to_dict()
    rewriting = "techniques=[{use: qmlp.bounded_activation, alpha: 1.0}, {use: baseline.minmax}]"
    rewritten = run(recipe(tmp_path, rewriting, finetune={}), cache=cache)
    assert rewritten.trainings["finetune"].loss != first.trainings["finetune"].loss


class Unused(nn.Module):
    """A wrapped module, and a parameter that no output depends on."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.spare = norm, nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return self.norm(x)


class Spare(Technique):
    """Inserts ``Unused``."""

    class Config(Config):
        use: Literal["toy.spare"] = "toy.spare"

    @hookimpl
    def qplug_rewrite_norm(self, module):
        return Rewrite(Unused(module), preserves=True, reason="for nothing")


def test_parameters_without_gradients_are_named(tmp_path):
    given = recipe(tmp_path, finetune={})
    steps = (Spare.Config(), *given.techniques)
    result = run(given.model_copy(update={"techniques": steps}), registry=toy_registry(Spare))
    assert "finetune had no gradient for 1 parameters: norm.spare" in result.warnings
    assert any("the recipe trains nothing" in warning for warning in run(recipe(tmp_path)).warnings)
    assert not any("the recipe trains nothing" in warning for warning in result.warnings)


def test_both_backends_train_alike(tmp_path):
    pytest.importorskip("modelopt", reason="pip install 'qplug[modelopt]'")
    given = recipe(tmp_path, qat={"learn": {"zero_points": True}})
    one, other = (run(given.model_copy(update={"backend": name})) for name in ("brevitas", "modelopt"))
    assert one.trainings["qat"].loss == other.trainings["qat"].loss
    assert one.plan.to_dict()["decisions"] == other.plan.to_dict()["decisions"]
