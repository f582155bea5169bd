"""ModelOpt's algorithms as techniques: the plan equals ModelOpt's own result, on both backends."""

import copy
import re
import warnings

import pytest
import torch

import qplug
from qplug import InputError, UniformQuantizer
from qplug.hooks.registry import installed
from qplug.recipe import recipe_type
from qplug.testing import toy_images, toy_registry
from qplug.testing.toys import calibrated_toy

pytest.importorskip("modelopt", reason="pip install 'qplug[modelopt]'")

from qplug_plugins.modelopt.library import quantize, quiet
from qplug_plugins.modelopt.quantizer import ScaledQuantizer

with quiet():
    import modelopt.torch.quantization as mtq

LINEARS = [{"match": kind, "skip": True} for kind in ("query", "key", "post_softmax", "value")]


def recipe(*steps, bits=8, activations=None, overrides=(), **more):
    data = {
        split: {"source": "toy", "split": name} for split, name in (("calibration", "train"), ("evaluation", "test"))
    }
    return recipe_type(toy_registry()).model_validate(
        {
            "version": 1,
            "model": {"source": "toy"},
            "data": data,
            "quantize": {
                "weights": {"bits": bits},
                "activations": {"bits": activations or bits},
                "overrides": [*overrides, *LINEARS],
            },
            "techniques": [{"use": step} if isinstance(step, str) else step for step in steps],
            **more,
        }
    )


def ran(*steps, out=None, **more):
    return qplug.run(recipe(*steps, **more), out=out, registry=toy_registry())


def images():
    """Those that a run on the toys calibrates with."""
    from qplug.data.stream import Stream
    from qplug.hooks.registry import component

    registry, parsed = toy_registry(), recipe("modelopt.max")
    source = component(registry.models, parsed.model).load()
    return list(Stream(component(registry.datasets, parsed.data.calibration).open(0), source.preprocessing, 32))


def theirs(config):
    """ModelOpt's own model."""
    model, inputs = copy.deepcopy(calibrated_toy()[0]), images()
    with quiet():
        return mtq.quantize(model, copy.deepcopy(config), lambda m: [m(batch) for batch in inputs])


def layers(model):
    return {name: one for name, one in model.named_modules() if hasattr(one, "weight_quantizer")}


def moved(one, other):
    return float((one - other).norm() / other.norm())


def test_max_is_the_int8_default(tmp_path):
    result, own = ran("modelopt.max", out=tmp_path / "run"), theirs(mtq.INT8_DEFAULT_CFG)
    says_what_modelopts_own_does(tmp_path / "run", own)
    assert len(layers(own)) == 10
    for name, layer in layers(own).items():
        for role in ("weight", "input"):
            quantizer = result.plan.of(name)[role]
            assert type(quantizer) is UniformQuantizer
            assert quantizer.signed
            assert torch.equal(quantizer.scale, getattr(layer, f"{role}_quantizer").amax / 127)
    assert {decision.technique for decision in result.plan} == {"modelopt.max"}
    (warning,) = (text for text in result.warnings if "chance" not in text)  # of a model with random weights
    assert re.fullmatch(r"\d+\.\d % of the MACs stay in float: blocks\.0\.attn\.matmul_qk, .*", warning)


def test_max_leaves_what_modelopts_integers_cannot_express():
    skew = {"match": "*fc1.input", "symmetric": False}
    channels = {"match": "*fc2.input", "granularity": "per_channel"}
    result = ran("modelopt.max", "toy.minmax", overrides=[skew, channels])
    others = {decision.site.name for decision in result.plan if decision.technique == "toy.minmax"}
    assert others == {f"blocks.{block}.mlp.{layer}.input" for block in (0, 1) for layer in ("fc1", "fc2")}


def says_what_modelopts_own_does(folder, own):
    """The run's model and ModelOpt's own, which rounds to the same integers here."""
    model, inputs = qplug.load_quantized(folder, registry=toy_registry()), toy_images(8)
    with torch.no_grad():
        assert moved(model(inputs), own(inputs)) < 1e-5  # measured: 7e-8, where a tie may fall to the other side
        assert moved(own(inputs), calibrated_toy()[0](inputs)) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["brevitas", "modelopt"])
def test_smooth_quant_computes_what_modelopts_own_model_does(backend, tmp_path):
    result, own = (
        ran("modelopt.smooth_quant", "modelopt.max", out=tmp_path / "run", backend=backend),
        theirs(mtq.INT8_SMOOTHQUANT_CFG),
    )
    folded = {change.where for change in result.plan.changes}
    assert folded == {f"blocks.{block}.norm{norm}" for block in (0, 1) for norm in (1, 2)}
    scaled = {d.site.name for d in result.plan if isinstance(d.quantizer, ScaledQuantizer)}
    assert scaled == {
        f"{layer}.{role}"
        for layer in ("blocks.0.attn.proj", "blocks.0.mlp.fc2", "blocks.1.attn.proj", "blocks.1.mlp.fc2", "head")
        for role in ("weight", "input")
    }
    proj = result.plan.of("blocks.1.attn.proj")["input"]
    assert torch.equal(proj.factor, layers(own)["blocks.1.attn.proj"].input_quantizer.pre_quant_scale.flatten())
    says_what_modelopts_own_does(tmp_path / "run", own)


@pytest.mark.slow
def test_smoothing_helps_where_channels_differ():
    plain, smoothed = ran("modelopt.max", bits=4), ran("modelopt.smooth_quant", "modelopt.max", bits=4)
    half = ran({"use": "modelopt.smooth_quant", "alpha": 0.5}, "modelopt.max", bits=4)
    loss = [result.metrics["quantized.logit_sqnr_db"] for result in (plain, smoothed, half)]
    assert min(loss[1:]) > loss[0] + 1.0  # measured: 6.6 → 8.5 and 8.7 dB


def test_awq_searches_at_the_recipes_bits_and_its_layers_lose_less():
    """Of the layer's own output, which is what the search sees; the model's need not gain (here 7.4 → 3.8 dB)."""
    plain = ran("modelopt.max", bits=3, activations=8).plan
    awq = ran("modelopt.awq_lite", "modelopt.max", bits=3, activations=8).plan
    model, given = calibrated_toy()[0], {}
    scaled = [d.site.module for d in awq if isinstance(d.quantizer, ScaledQuantizer)]
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, args, out, name=name: given.update({name: args[0]}))
        for name in scaled
    ]
    model(images()[0])
    for hook in hooks:
        hook.remove()
    assert sorted(scaled) == sorted(["head", *(f"blocks.{i}.{m}" for i in (0, 1) for m in ("attn.proj", "mlp.fc2"))])
    assert type(awq.of("head")["input"]) is UniformQuantizer
    loss = {"plain": 0.0, "awq": 0.0}
    for name, x in given.items():
        weight = model.get_submodule(name).weight
        for key, plan in (("plain", plain), ("awq", awq)):
            loss[key] += moved(x @ plan.of(name)["weight"].infer(weight).T, x @ weight.T) / len(scaled)
    assert loss["awq"] < 0.9 * loss["plain"]  # measured: 0.19 → 0.15


@pytest.mark.parametrize("method", ["gradient", "kl_div"])
def test_auto_quantize_keeps_the_average_and_what_overrides_fix(method):
    step = {"use": "modelopt.auto_quantize", "bits": 6.0, "candidates": [4, 6, 8], "method": method}
    result = ran(step, "modelopt.max", overrides=[{"match": "patch_embed*", "bits": 8}])
    weights = [d for d in result.plan if d.site.kind.is_weight]
    free = [d for d in weights if not d.site.module.startswith("patch_embed")]
    mean = sum(d.spec.bits * d.site.numel for d in free) / sum(d.site.numel for d in free)
    assert 4.0 < mean <= 6.0 + 1e-9
    assert {d.spec.bits for d in free} <= {4, 6, 8}
    assert {d.bits_by for d in free} == {"modelopt.auto_quantize"}
    for decision in free:
        assert result.plan.of(decision.site.module)["input"].bits == decision.spec.bits
    assert result.plan.of("patch_embed.proj")["weight"].bits == 8


def test_candidates_are_scored_with_the_scales_that_the_recipe_asks(monkeypatch):
    own, scales = mtq.auto_quantize, {}

    def watched(*arguments, **more):
        model, state = own(*arguments, **more)
        scales.update({name: one.weight_quantizer.amax.numel() for name, one in layers(model).items()})
        return model, state

    monkeypatch.setattr(mtq, "auto_quantize", watched)
    whole = {"match": "*fc1.weight", "granularity": "per_tensor"}
    ran({"use": "modelopt.auto_quantize", "candidates": [4, 8]}, "modelopt.max", overrides=[whole])
    model = calibrated_toy()[0]
    assert len(scales) == 10
    for name, count in scales.items():
        assert count == (1 if name.endswith("fc1") else len(model.get_submodule(name).weight))


def test_model_and_images_are_released_if_another_technique_allocates(monkeypatch):
    AutoQuantize, instances = installed().techniques["modelopt.auto_quantize"], []
    own = AutoQuantize.__init__
    monkeypatch.setattr(AutoQuantize, "__init__", lambda one, config: (own(one, config), instances.append(one))[0])
    first = {"use": "mptq_vit.greedy_mp", "weights": 7.5, "activations": 7.5}
    result = ran(first, "modelopt.auto_quantize", "modelopt.max")
    assert result.metrics["bits.by"] == "mptq_vit.greedy_mp"
    assert [technique._calibration for technique in instances] == [None]


def test_budgets_that_no_candidate_meets_are_refused_with_the_values():
    Config = installed().techniques["modelopt.auto_quantize"].Config
    with pytest.raises(ValueError, match=re.escape("bits 3 lie outside of the candidates [4, 8]")):
        Config(bits=3, candidates=(4, 8))
    with pytest.raises(ValueError, match=re.escape("must have 2 to 16 bits, received [1, 8]")):
        Config(candidates=(1, 8))


def test_modelopt_says_nothing_on_the_screen(capsys):
    ran("modelopt.smooth_quant", "modelopt.max")
    ran({"use": "modelopt.auto_quantize", "candidates": [4, 8]}, "modelopt.max")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_layers_that_modelopt_gives_up_are_noted_and_its_other_warnings_are_not():
    class Spare(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    notes, config = [], copy.deepcopy(mtq.INT8_SMOOTHQUANT_CFG)
    layers = quantize(Spare(), config["quant_cfg"], config["algorithm"], [torch.randn(3, 4)], notes)
    assert {name for name, layer in layers.items() if layer.scale is not None} == {"used"}
    assert notes == ["spare is not calibrated, skip smoothing"]


def test_what_modelopt_gave_up_is_a_warning_of_the_run(monkeypatch):
    own, text = mtq.quantize, "awq_lite: Disabling for head, quantizing with max calibration."

    def giving_up(*arguments):
        warnings.warn(text, stacklevel=1)
        warnings.warn("no preset", stacklevel=1)
        return own(*arguments)

    monkeypatch.setattr(mtq, "quantize", giving_up)
    result = ran("modelopt.awq_lite", "modelopt.max")
    assert [text for text in result.warnings if "stay in float" not in text and "chance" not in text] == [
        f"modelopt.awq_lite: {text}",
        f"modelopt.max: {text}",
    ]


@pytest.mark.slow
def test_both_backends_give_the_same_run_and_load_it_again(tmp_path):
    steps = ("modelopt.smooth_quant", "modelopt.max")
    both = [ran(*steps, out=tmp_path / name, backend=name) for name in ("brevitas", "modelopt")]
    assert both[0].plan.to_dict() == both[1].plan.to_dict()
    assert both[0].metrics["quantized.logit_sqnr_db"] == both[1].metrics["quantized.logit_sqnr_db"]
    models = [qplug.load_quantized(result.folder, registry=toy_registry()) for result in both]
    with torch.no_grad():
        assert torch.equal(*(model(toy_images(5)) for model in models))


def test_a_run_of_a_backend_that_is_not_installed_is_refused_by_name(tmp_path):
    result, registry = ran("modelopt.max", out=tmp_path / "run", backend="modelopt"), toy_registry()
    registry.backends = {name: offer for name, offer in registry.backends.items() if name != "modelopt"}
    with pytest.raises(InputError, match="there is no backend 'modelopt'"):
        qplug.load_quantized(result.folder, registry=registry)
