"""ModelOpt's layers and TensorQuantizers hold every quantized operation, and describe it in ModelOpt's terms."""

import shutil

import pytest
import torch
from backend_toys import lowered
from numeric_toys import calibrated, swin
from torch import nn

import qplug
from qplug import Extra, InputError, QuantSpec, RecipeError, SiteKind, UniformQuantizer
from qplug.testing import toy_images, toy_registry
from qplug.testing.run import toy_recipe

pytest.importorskip("modelopt", reason="pip install 'qplug[modelopt]'")

from qplug.quantization.backends.modelopt import ModelOptBackend, QuantConv2d, QuantLinear, TensorQuantizer
from qplug.quantization.backends.modelopt_quant import NAME, tensor_quantizer

BACKEND = ModelOptBackend()


@pytest.fixture(scope="module", params=["vit", "swin"])
def known(request):
    if request.param == "vit":
        return (*calibrated(), toy_images(3))
    return (*calibrated(swin().requires_grad_(False), torch.randn(2, 3, 32, 32)), torch.randn(2, 3, 32, 32))


def test_every_quantized_operation_is_held_by_modelopt(known):
    _, found, *_ = known
    quantized, plan = lowered(BACKEND, known)
    kinds = [site.kind for site in found.sites]
    layers = {kind: sum(isinstance(m, kind) for m in quantized.modules()) for kind in (QuantLinear, QuantConv2d)}
    assert layers == {
        QuantLinear: kinds.count(SiteKind.LINEAR_WEIGHT),
        QuantConv2d: kinds.count(SiteKind.CONV_WEIGHT),
    }
    enabled = [m for m in quantized.modules() if isinstance(m, TensorQuantizer) and m.is_enabled]
    assert len(enabled) == len(plan.decisions)
    assert {quantizer.backend for quantizer in enabled} == {NAME}
    assert not [m for m in quantized.modules() if type(m) in (nn.Linear, nn.Conv2d)]


def described(quantizer):
    made = tensor_quantizer(quantizer)
    amax = None if made.amax is None else made.amax.flatten().tolist()
    return made.num_bits, made.unsigned, made.narrow_range, made.axis, amax, made.backend_extra_args


def test_a_tensor_quantizer_describes_itself_in_modelopts_terms():
    scales = torch.tensor([0.5, 0.25]).view(2, 1)
    per_channel = UniformQuantizer(scales, None, 4, True)
    assert described(per_channel) == (4, False, False, -2, [3.5, 1.75], {})
    assert described(UniformQuantizer(torch.tensor(0.5), None, 8, False)) == (8, True, False, None, [127.5], {})
    grid = UniformQuantizer(torch.rand(2, 3) + 0.1, None, 8, True)
    assert described(grid)[3] == (-2, -1)
    asymmetric = UniformQuantizer(torch.tensor(0.5), torch.tensor(3.0), 4, False)
    assert described(asymmetric)[4:] == (None, {"quantizer": "uniform asymmetric"})


def test_amax_is_that_of_the_scale_as_it_is_learned():
    made = tensor_quantizer(UniformQuantizer(torch.tensor(0.5), None, 4, True))
    x = torch.linspace(-8, 8, 65)
    with torch.no_grad():
        made.planned.quantizer.scale.mul_(2)
    assert made.amax == 7.0
    assert made.step_size == 1.0
    exact = made(x)
    made.backend = None  # ModelOpt's own kernel, which reads amax
    assert torch.equal(made(x), exact)
    assert exact.max() == 7.0


@pytest.mark.parametrize("bits", [4, 8])
def test_modelopts_own_kernel_rounds_the_scale_and_so_is_not_used(bits):
    """Without ``backend`` it gives the same integers but for ties that its rounded reciprocal moves."""
    x = torch.randn(64, 500, generator=torch.Generator().manual_seed(0))
    quantizer = UniformQuantizer.from_range(x.amin(1, keepdim=True), x.amax(1, keepdim=True), QuantSpec(bits))
    made = tensor_quantizer(quantizer)
    exact = made(x)
    assert torch.equal(exact, quantizer.infer(x))
    made.backend = None
    native = made(x)
    assert not torch.equal(native, exact)
    codes, others = torch.round(exact / quantizer.scale), torch.round(native / quantizer.scale)
    assert (codes != others).sum() <= 3  # of 32,000; each a whole step
    torch.testing.assert_close(native[codes == others], exact[codes == others], rtol=1e-6, atol=0)
    power = UniformQuantizer(torch.tensor(2.0**-4), None, bits, True)  # whose reciprocal is exact
    made = tensor_quantizer(power)
    exact = made(x)
    made.backend = None
    assert torch.equal(made(x), exact)


def test_modelopts_own_summary_lists_the_quantizers(known, capsys):
    import modelopt.torch.quantization as mtq

    quantized, plan = lowered(BACKEND, known)
    mtq.print_quant_summary(quantized)
    lines = capsys.readouterr().out.splitlines()
    assert sum("4 bit fake" in line for line in lines) == len(plan.decisions)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The run folder of a run on ModelOpt."""
    registry = toy_registry()
    recipe = toy_recipe(registry.techniques["mptq_vit.opt_m"], registry=registry).model_copy(
        update={"backend": "modelopt"}
    )
    return qplug.run(recipe, out=tmp_path_factory.mktemp("modelopt") / "run", registry=registry).folder


def test_a_run_is_loaded_on_its_backend_bit_for_bit(folder):
    models = [qplug.load_quantized(folder, registry=toy_registry()) for _ in range(2)]
    assert isinstance(models[0].blocks[0].mlp.fc1, QuantLinear)
    with torch.no_grad():
        plain = models[0](toy_images(3))
    with BACKEND.inference(models[1]):
        assert torch.equal(models[1](toy_images(3)), plain)


def test_a_run_is_refused_if_modelopt_is_missing(folder, monkeypatch):
    monkeypatch.setattr(Extra, "missing", property(lambda extra: extra.module == "modelopt"))
    with pytest.raises(RecipeError, match=r"recipe\.yaml:\d+:10: backend: 'modelopt' needs the package") as caught:
        qplug.load_quantized(folder, registry=toy_registry())
    assert caught.value.problems[0].fix == "pip install 'qplug[modelopt]'"


def test_a_damaged_run_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not the file that the run wrote") as caught:
        qplug.load_quantized(tmp_path / "run", registry=toy_registry())
    assert caught.value.where == str(path)
