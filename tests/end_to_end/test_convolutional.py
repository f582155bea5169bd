"""Convolutional networks through the whole house: folded, quantized, reconstructed, loaded again."""

import json
from typing import Literal

import pytest
import torch
from cnn_toys import FAMILIES, family, lively, small_mobilenet
from paths import RECIPES
from qplug_plugins.brecq import Brecq
from run_toys import relocked
from torch import nn

import qplug
from qplug import InputError, Metric, Rewrite, Technique, hookimpl
from qplug.analysis.inspect import inspect
from qplug.analysis.sensitivity.measure import SensitivityRequest, measure
from qplug.cli.report.run import protocol_parts, summary_tables
from qplug.core.text import Alarm
from qplug.core.types import SiteKind
from qplug.data.loading import batches
from qplug.hooks.registry import backend_of, component
from qplug.models.batchnorm import BY, REASON
from qplug.models.float_model import FloatModel, Preprocessing
from qplug.pipeline.run import run
from qplug.quantization.accounting import CONVENTIONS
from qplug.testing.run import ToyModel, toy_recipe, toy_registry


class Quiet(Technique):
    """Answers nothing."""

    class Config(qplug.Config):
        use: Literal["toy.quiet"] = "toy.quiet"

    @hookimpl
    def qplug_rewrite_norm(self, name, module):
        return None


class Denormed(Technique):
    """Takes one BatchNorm away, and puts another in."""

    class Config(qplug.Config):
        use: Literal["toy.denormed"] = "toy.denormed"

    @hookimpl
    def qplug_rewrite_norm(self, name, module):
        if name == "bn1":
            return Rewrite(nn.ReLU(inplace=True), preserves=False, reason="no norm")
        return None

    @hookimpl
    def qplug_rewrite_module(self, name, module):
        if name == "classifier":
            norm = nn.BatchNorm1d(module.out_features)
            norm.running_mean += 1.0
            return Rewrite(nn.Sequential(module, norm), preserves=False, reason="a norm more")
        return None


class PreActivation(nn.Module):
    """A BatchNorm that reads a convolution, and one that reads a sum."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.second, self.sum_norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        return self.head(self.sum_norm(self.second(x) + x).relu().mean((2, 3)))


def registry(build, *techniques, size=(3, 16, 16)):
    """The toys with another model."""

    class Model(ToyModel):
        def load(self):
            return FloatModel.of(build(), "toy", Preprocessing(size, (0.5,) * 3, (0.25,) * 3, "nearest", 1.0))

    found = toy_registry(*techniques)
    found.models = {**found.models, "toy": Model}
    return found


def quantized(build, technique=Quiet, bits=8, out=None, size=(3, 16, 16), **more):
    """The result of a run, the logits of its quantized model, and the registry."""
    kept, toys = {}, registry(build, technique, size=size)
    toys.metrics = {"trial.keep": Metric("keep", lambda f, q, y: kept.update(logits=q) or 0.0)}
    recipe = toy_recipe(technique, registry=toys, bits=bits, **more)
    return run(recipe, registry=toys, out=out), kept["logits"], toys


def loaded(result, toys):
    """The logits of what the run folder gives back, for the images that the run evaluated."""
    model = qplug.load_quantized(result.folder, registry=toys)
    images = component(toys.datasets, result.recipe.data.evaluation).open(0)
    transform = component(toys.models, result.recipe.model).load().preprocessing.transform()
    with backend_of("brevitas", toys).inference(model):
        return torch.cat([model(pixels) for pixels, _ in batches(images, transform, result.recipe.data.batch_size)])


def test_a_mobilenet_is_covered_and_says_what_was_folded(tmp_path):
    result, _, _ = quantized(small_mobilenet, out=tmp_path / "run")
    assert result.metrics["coverage.macs"] == 1.0
    assert result.metrics["quantized.logit_sqnr_db"] > 20  # measured: 29.9
    changes = [(change.where, change.technique, change.reason) for change in result.plan.changes]
    assert changes[0] == ("bn1 → conv_stem.conv", BY, REASON)
    assert len(changes) == 7
    assert result.plan.float_sites == {}
    warnings = [warning for warning in result.warnings if not isinstance(warning, Alarm)]  # a toy is at chance
    assert warnings == ["toy.quiet had nothing to do: no site, norm or module was left for it"]
    (decisions, *_) = summary_tables(result, CONVENTIONS["full"])
    assert decisions.notes == [f"7 × {BY}: {REASON}"]
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert [change["where"] for change in plan["changes"]] == [where for where, *_ in changes]


def test_a_run_folder_gives_back_the_model_bit_for_bit(tmp_path):
    result, logits, toys = quantized(small_mobilenet, bits=4, out=tmp_path / "run")
    assert torch.equal(loaded(result, toys), logits)


def test_folding_comes_after_the_techniques_that_take_a_norm_away_or_put_one_in(tmp_path):
    result, logits, toys = quantized(small_mobilenet, Denormed, out=tmp_path / "run")
    changes = {change.where: change.technique for change in result.plan.changes}
    assert list(changes)[:3] == ["bn1", "classifier", "blocks.0.0.bn1 → blocks.0.0.conv_dw"]
    assert list(changes)[-1] == "classifier.1 → classifier.0"
    assert result.metrics["coverage.macs"] == 1.0
    assert torch.equal(loaded(result, toys), logits)


def test_a_folder_whose_norms_are_not_folded_as_in_the_run_is_refused(tmp_path):
    result, _, toys = quantized(small_mobilenet, out=tmp_path / "run")
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    plan["changes"] = plan["changes"][1:]
    (tmp_path / "run" / "plan.json").write_text(json.dumps(plan))
    relocked(tmp_path / "run")
    with pytest.raises(InputError, match=r"core.fold_batchnorm does not rewrite bn1 → conv_stem.conv as it did"):
        loaded(result, toys)


def test_what_cannot_be_folded_is_shown_wherever_what_stays_in_float_is():
    reason = "does not read the output of an nn.Conv2d or nn.Linear as it is, and its own is read by relu"
    result, _, toys = quantized(lambda: lively(PreActivation()))
    assert result.plan.float_sites == {"sum_norm": reason}
    assert result.warnings[-1] == f"BatchNorms that could not be folded stay in float: sum_norm {reason}"
    assert "in float: sum_norm" in protocol_parts([], result)
    found = inspect(component(toys.models, result.recipe.model), toys)
    assert found.float_norms == {"sum_norm": reason}
    assert found.coverage == 1.0


def test_sensitivity_is_measured_on_the_folded_model():
    def ones():
        model = PreActivation()
        with torch.no_grad():
            model.first.weight.fill_(1.0)
        return model

    toys = registry(lambda: lively(ones()), Quiet)
    recipe = toy_recipe(Quiet, registry=toys)
    images = [component(toys.datasets, data) for data in (recipe.data.calibration, recipe.data.evaluation)]
    ranges = [component(toys.techniques, recipe.techniques[1])]
    found = measure(component(toys.models, recipe.model), *images, ranges, SensitivityRequest(), registry=toys)
    first = next(one.decision.quantizer for one in found.sites if one.site.name == "first.weight")
    model = lively(ones())
    factor = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    assert torch.allclose(first.scale.flatten(), factor / 15)  # 4 bits of a weight that was one everywhere
    assert found.warnings[0].startswith("BatchNorms that could not be folded stay in float: sum_norm does not read")


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU])
def test_grids_after_activations_hold_what_they_give_and_no_more(activation, symmetric):
    """Unsigned where nothing is negative; ReLU6's never reach beyond 6; signed or shifted where something is."""

    def build():
        model = small_mobilenet()
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.ReLU6):
                    setattr(parent, name, activation())
        with torch.no_grad():
            model.bn1.weight *= 10.0  # so that ReLU6 is reached
        return model

    toys = registry(build, Quiet)
    recipe = toy_recipe(Quiet, registry=toys)
    activations = recipe.quantize.activations.model_copy(update={"bits": 8, "symmetric": symmetric})
    recipe = recipe.model_copy(update={"quantize": recipe.quantize.model_copy(update={"activations": activations})})
    plan = run(recipe, registry=toys).plan
    for name in ("blocks.0.0.conv_dw.input", "blocks.0.0.conv_pw.input", "blocks.1.0.conv_dw.conv.input"):
        decision = plan.decisions[name]
        assert decision.site.kind is SiteKind.CONV_INPUT
        grid = decision.quantizer
        low = float(grid.scale * (grid.low - grid.zero_point))
        high = float(grid.scale * (grid.high - grid.zero_point))
        if activation in (nn.ReLU, nn.ReLU6):
            assert not grid.signed
            assert low == 0.0
            assert float(grid.zero_point) == 0.0
        else:
            assert grid.signed == symmetric
            assert low < -0.1
        if activation is nn.ReLU6:
            assert high == pytest.approx(6.0, rel=1e-6) if "conv_dw.input" in name else high <= 6.0 + 1e-5
    assert plan.decisions["conv_stem.conv.input"].quantizer.signed == symmetric


def is_reconstructed_and_round_trips(build, out, size):
    result, logits, toys = quantized(build, Brecq, out=out, size=size, iterations=2, loss="fisher")
    assert result.metrics["coverage.macs"] == 1.0
    assert result.float_macs == result.plan.float_sites == {}
    weights = [decision for decision in result.plan if decision.site.kind.is_weight]
    assert [d.site.name for d in weights if "brecq.brecq: error of" not in d.reason] == []
    assert torch.equal(loaded(result, toys), logits)
    return result


def test_squeeze_and_excite_multiplies_in_float_and_its_convolutions_are_quantized(tmp_path):
    result = is_reconstructed_and_round_trips(
        lambda: small_mobilenet("ir_r1_k3_s2_e2_c16_se0.25_nhs"), tmp_path / "run", (3, 16, 16)
    )
    assert {f"blocks.0.0.se.{name}" for name in ("conv_reduce", "conv_expand")} < set(result.plan.modules())
    assert not result.plan.decisions["blocks.0.0.se.conv_expand.input"].quantizer.signed  # behind a ReLU
    assert result.plan.decisions["blocks.0.0.conv_pwl.input"].quantizer.signed  # behind Hardswish and a product


def test_blocks_are_those_that_plugins_declare():
    toys = registry(small_mobilenet, Brecq)
    toys.blocks = ["torch.nn.modules.container:Sequential"]
    plan = run(toy_recipe(Brecq, registry=toys, iterations=2), registry=toys).plan
    blocks = [d.reason.rpartition("error of ")[2].split()[0] for d in plan if d.site.kind.is_weight]
    assert list(dict.fromkeys(blocks)) == ["conv_stem", "blocks", "classifier"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_reconstructed_and_round_trips(name, tmp_path):
    is_reconstructed_and_round_trips(lambda: family(name), tmp_path / "run", (3, 32, 32))


@pytest.mark.real
def test_the_real_mobilenet_at_eight_bits(shared, tmp_path):
    sample = shared / "data" / "imagenet_sample"
    values = {"model.checkpoint_path": shared / "weights" / "mobilenetv1_025.safetensors"}
    for part, folder in (("calibration", "calib"), ("evaluation", "dev")):
        values[f"data.{part}.path"] = sample / folder
        values[f"data.{part}.class_map"] = sample / "class_map.txt"
    values |= {"data.calibration.images": 250, "quantize.weights.bits": 8, "techniques.0.use": "baseline.minmax"}
    recipe = RECIPES / "imagenet" / "mobilenetv1.yaml"
    result = run(qplug.load_recipe(recipe, [f"{key}={value}" for key, value in values.items()]), out=tmp_path / "run")
    metrics = result.metrics
    assert metrics["images.evaluation"] == 250
    assert metrics["float.top1"] == pytest.approx(0.512, abs=0.005)  # what timm's model says of these images
    assert metrics["quantized.agreement"] > 0.7  # measured: 0.78
    assert metrics["coverage.macs"] == 1.0
    assert len(result.plan.changes) == 27
    assert torch.isfinite(qplug.load_quantized(tmp_path / "run")(torch.zeros(1, 3, 224, 224))).all()
