"""The model that is measured is the model that is quantized, whatever kernels torch has for its classes."""

from __future__ import annotations

import pytest
import torch
from qplug_plugins.baseline import Hessian
from torch import nn
from torch.nn import functional as F
from transformer_toys import WIDTH, Patches, encoder, registry_of, run_of, source_of, vision_transformer

import qplug
from qplug import InputError
from qplug.analysis.inspect import inspect
from qplug.quantization.calls import check_one_forward
from qplug.testing import toy_images
from qplug.testing.run import ToyMinMax, toy_recipe


class SelfAttention(nn.Module):
    """Attention alone, as DETR and CLIP call it."""

    def __init__(self, **more):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, **more)

    def forward(self, x):
        return x + self.attention(x, x, x, need_weights=False)[0]


class Decoder(nn.Module):
    """Learned queries that look at the tokens."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 3, WIDTH))
        self.layer = nn.TransformerDecoderLayer(WIDTH, 2, 24, batch_first=True)

    def forward(self, x):
        return self.layer(self.queries.expand(len(x), -1, -1), x)


MODELS = {
    "encoder": lambda: Patches(encoder),
    "encoder, tokens first": lambda: Patches(lambda: encoder(batch_first=False), first=True),
    "attention": lambda: Patches(lambda: SelfAttention(batch_first=True)),
    "attention, tokens first": lambda: Patches(SelfAttention, first=True),
    "decoder": lambda: Patches(Decoder),
    "torchvision's ViT": vision_transformer,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_model_computes_what_was_measured(name, tmp_path):
    """In eval mode without gradients, and without a context of qplug."""
    result = run_of(MODELS[name], tmp_path / "run", bits=3)
    assert result.plan.coverage == 1.0
    assert result.plan.float_macs == result.plan.unknown == {}
    loaded = qplug.load_quantized(tmp_path / "run", registry=registry_of(MODELS[name]))
    float_, x = source_of(MODELS[name]).load().module, toy_images(2)
    with torch.no_grad():
        measured, found = result.model(x), loaded(x)
        assert torch.equal(found, measured)
        assert not torch.allclose(found, float_(x), rtol=1e-3)
    assert torch.equal(loaded(x), measured)  # with gradients


@pytest.mark.slow
@pytest.mark.parametrize("name", ["encoder", "torchvision's ViT"])
def test_an_exported_model_passes_the_gate(name, tmp_path):
    pytest.importorskip("onnxruntime")
    run_of(MODELS[name], tmp_path / "run")
    exported = qplug.export_run(tmp_path / "run", images=4, registry=registry_of(MODELS[name]))
    assert exported.parity.first_wrong is None


class Functional(nn.Module):
    """A layer whose weight other code reads, beside a call of it or in its place."""

    def __init__(self, read, call):
        super().__init__()
        self.layer, self.read, self.call = nn.Linear(WIDTH, WIDTH), read, call

    def forward(self, x):
        y = self.layer(x) if self.call else x
        return y + self.read(self.layer, x)


def linear(layer, x):
    return F.linear(x, layer.weight, layer.bias)


READS = {
    "F.linear": linear,
    "a product": lambda layer, x: x @ layer.weight.t(),
    "einsum": lambda layer, x: torch.einsum("bnc,mc->bnm", x, layer.weight),
    "a scaled copy": lambda layer, x: F.linear(x, layer.weight * 0.5),
    "its data": lambda layer, x: x @ layer.weight.data,
    "its forward, without a call": lambda layer, x: layer.forward(x),
    "a convolution": lambda layer, x: F.conv1d(x.mT, layer.weight.unsqueeze(-1)).mT,
}


@pytest.mark.parametrize("name", READS)
def test_a_weight_that_other_code_reads_too_is_refused_before_calibration(name):
    with pytest.raises(InputError, match=r"past a quantizer: body\.layer\.weight") as caught:
        run_of(lambda: Patches(lambda: Functional(READS[name], call=True)))
    assert caught.value.where == "body.layer.weight"
    assert "skip: true" in caught.value.fix


def test_a_weight_that_other_code_reads_may_stay_in_float():
    build = lambda: Patches(lambda: Functional(linear, call=True))  # noqa: E731
    registry = registry_of(build)
    recipe = toy_recipe(ToyMinMax, registry=registry, bits=8).model_dump()
    recipe["quantize"]["overrides"] = [{"match": "body.layer.weight", "skip": True}]
    result = qplug.run(type(toy_recipe(ToyMinMax, registry=registry)).model_validate(recipe), registry=registry)
    assert result.plan.float_macs == {"body": 4 * WIDTH * WIDTH, "body.layer": 4 * WIDTH * WIDTH}


def test_a_weight_that_is_only_read_is_counted_in_float():
    result = run_of(lambda: Patches(lambda: Functional(linear, call=False)))
    assert result.plan.float_macs == {"body": 4 * WIDTH * WIDTH}
    assert "body.layer.weight" not in result.plan.decisions


def test_the_shape_of_a_weight_may_be_read():
    result = run_of(lambda: Patches(lambda: Functional(lambda layer, x: x.new_ones(len(layer.weight)), call=True)))
    assert result.plan.coverage == 1.0


def test_inspect_names_what_passes_a_quantizer_by():
    found = inspect(source_of(lambda: Patches(lambda: Functional(linear, call=True))))
    assert list(found.bypassed) == ["body.layer.weight"]
    assert "aten.mm in body" in found.bypassed["body.layer.weight"]
    assert found.coverage < 1.0


def test_a_weight_that_is_a_table_too_is_quantized_where_it_multiplies():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.table = nn.Linear(WIDTH, WIDTH, bias=False), nn.Embedding(WIDTH, WIDTH)
            self.layer.weight = self.table.weight

        def forward(self, x):
            return self.layer(x) + self.table(torch.arange(x.shape[1]))

    result = run_of(lambda: Patches(Tied))
    assert "body.layer.weight" in result.plan.decisions
    assert result.plan.coverage == 1.0


def test_loading_refuses_a_model_that_computes_past_its_quantizers(tmp_path):
    run_of(lambda: Patches(lambda: Functional(lambda layer, x: x, call=True)), tmp_path / "run")
    qplug.load_quantized(tmp_path / "run", registry=registry_of(lambda: Patches(lambda: Functional(still, call=True))))
    for read, message in (
        (linear, r"past a quantizer: body\.layer\.weight"),
        (past, r"the loaded model calls .*body\.layer"),
    ):
        changed = registry_of(lambda read=read: Patches(lambda: Functional(read, call=read is linear)))
        with pytest.raises(InputError, match=message):
            qplug.load_quantized(tmp_path / "run", registry=changed)


def still(layer, x):
    return x * 1


def past(layer, x):
    """Calls the layer as long as it is not quantized."""
    return layer(x) if type(layer) is nn.Linear else linear(layer, x)


class Fused(nn.Module):
    """What torch's encoder layers do: one kernel for two layers where no gradient is asked for, unless traced."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        if torch.is_grad_enabled() or torch.overrides.has_torch_function((x, self.one.weight)):
            return self.two(self.one(x))
        return F.linear(F.linear(x, self.one.weight, self.one.bias), self.two.weight, self.two.bias)


def test_a_fused_path_of_ones_own_is_refused_before_calibration():
    with pytest.raises(InputError, match=r"body\.one\.weight: .* 0 × instead of 1 ×"):
        run_of(lambda: Patches(Fused))


class Switched(nn.Module):
    """Calls its layer only while its weight is that of an ``nn.Linear``."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.layer(x) if type(self.layer) is nn.Linear else F.linear(x, self.layer.weight, self.layer.bias)


def test_a_path_that_opens_behind_quantization_is_refused_in_evaluation():
    with pytest.raises(
        InputError, match=r"the quantized model calls .*: body\.layer \(weight, input\) 0 × instead of 1 ×"
    ):
        run_of(lambda: Patches(Switched))


def test_a_layer_that_calibration_does_not_call_is_refused():
    class Rare(nn.Module):
        """Calls its layer for values that no image has, as the example that sites are found with."""

        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Conv2d(3, 3, 1), nn.Linear(3, 5)

        def forward(self, x):
            return self.head((self.layer(x) if x.max() > 2.1 else x).mean((2, 3)))

    with pytest.raises(InputError, match=r"calibration calls layer in no forward"):
        run_of(Rare)


def test_calls_are_counted_by_forward_and_more_of_them_are_no_fault(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            return self.layer(self.layer(x))

    result = run_of(lambda: Patches(Twice), tmp_path / "run")
    assert result.plan.calls == {"patch": 1, "body.layer": 2, "head": 1}
    result.plan.calls["body.layer"] = 1
    check_one_forward(result.model, result.plan, toy_images(1), "the model")
    result.plan.calls["head"] = 2
    with pytest.raises(InputError, match=r"the model calls .*: head \(weight, input\) 1 × instead of 2 ×"):
        check_one_forward(result.model, result.plan, toy_images(1), "the model")


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_scripted_part_stays_in_float_and_is_named():
    result = run_of(
        lambda: Patches(lambda: torch.jit.script(nn.TransformerEncoderLayer(WIDTH, 2, 24, batch_first=True).eval()))
    )
    assert list(result.plan.float_macs) == ["body"]
    assert set(result.plan.modules()) == {"patch", "head"}


def test_a_recurrent_layer_stays_in_float_and_is_counted_also_with_gradients():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

        def forward(self, x):
            return self.gru(x)[0]

    registry = registry_of(lambda: Patches(Recurrent))
    result = qplug.run(toy_recipe(Hessian, registry=registry, bits=8), registry=registry)
    assert result.plan.float_macs == {"body.gru": 3 * 8 * WIDTH * WIDTH}


def test_unknown_multiplications_are_said_everywhere():
    from qplug.cli.report.run import run_summary, summary_tables
    from qplug.quantization.accounting import CONVENTIONS, DEFAULT

    class Fourier(nn.Module):
        def forward(self, x):
            return torch.fft.fft2(x).real

    result = run_of(lambda: Patches(Fourier))
    assert result.plan.unknown == {"body": "aten._fft_c2c"} or "aten._fft_r2c" in result.plan.unknown["body"]
    assert result.metrics["coverage.macs"] is None
    assert any("unknown" in warning and "body (aten._fft" in warning for warning in result.warnings)
    assert run_summary(result)["unknown_macs"] == result.plan.unknown
    results = summary_tables(result, CONVENTIONS[DEFAULT])[-1]
    assert ("MACs quantized", "unknown") in results.rows
    assert "unknown share of the MACs in float: body" in results.notes[0]
    assert "every MAC" not in results.notes[0]
