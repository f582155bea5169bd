"""A run folder gives back the model that was measured, bit for bit, from as many bytes as the run says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from paths import ROOT
from run_toys import relocked
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import nn

import qplug
from qplug import InputError, Metric
from qplug.core.storage.hashing import fingerprint
from qplug.data.loading import batches
from qplug.hooks.registry import backend_of, component, installed
from qplug.models.sources import TimmModel
from qplug.testing import toy_registry, toy_vit

DIGITS = """
version: 1
model: {source: zoo, name: vit_digits}
data:
  calibration: {source: digits, split: train, images: 16}
  evaluation: {source: digits, split: test, images: 40}
quantize:
  weights: {bits: 4}
  activations: {bits: 4}
  overrides: [{match: "head*", bits: 8}, OVERRIDES]
techniques: [{use: mptq_vit.sq_b}, {use: tsptq_vit.v_2sf, kinds: [post_softmax]}, {use: baseline.minmax}]
"""
WIDTHS = {
    "w4a4": '{match: "patch_embed*", bits: 8}',
    "mixed": '{match: "blocks.0*", bits: 3}, {match: "blocks.[12]*", bits: 5}, {match: "*proj*", symmetric: false}',
}


def quantized(text: str, out: Path, registry=None):
    """Run the recipe; the result, and the logits of the quantized model."""
    kept = {}
    registry = registry or toy_registry()
    registry.metrics = {"trial.keep": Metric("keep", lambda f, q, y: kept.update(logits=q) or 0.0)}
    path = out.with_suffix(".yaml")
    path.write_text(text)
    recipe = qplug.load_recipe(path, registry=registry)
    return qplug.run(recipe, out=out, registry=registry), kept["logits"]


def says(model: nn.Module, result, registry=None) -> torch.Tensor:
    """The logits of ``model`` for the images that the run evaluated, as the backend computes them."""
    registry = registry or installed()
    recipe = result.recipe
    images = component(registry.datasets, recipe.data.evaluation).open(0)
    transform = component(registry.models, recipe.model).architecture().preprocessing.transform()
    with backend_of("brevitas", registry).inference(model):
        return torch.cat([model(pixels) for pixels, _ in batches(images, transform, recipe.data.batch_size)])


@pytest.fixture(scope="module", params=WIDTHS)
def digits(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("digits") / request.param
    return quantized(DIGITS.replace("OVERRIDES", WIDTHS[request.param]), out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A small run folder, not to be changed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    quantized(toy_recipe("{use: baseline.minmax}"), out)
    return out


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def toy_recipe(steps: str, model: str = "{source: toy}") -> str:
    data = "{calibration: {source: toy, split: train}, evaluation: {source: toy, split: test, images: 5}}"
    bits = "{weights: {bits: 4}, activations: {bits: 4}}"
    return f"version: 1\nmodel: {model}\ndata: {data}\nquantize: {bits}\ntechniques: [{steps}]\n"


def rewrite_weights(folder: Path, change) -> None:
    """Change the tensors as if they had been written so."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"fingerprint": fingerprint(tensors)})


def rewrite_plan(folder: Path, change) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    change(plan)
    (folder / "plan.json").write_text(json.dumps(plan))


# what comes back


def test_the_logits_are_those_of_the_run(digits):
    result, logits = digits
    model = qplug.load_quantized(result.folder)
    assert not model.training
    assert logits.shape == (40, 10)
    assert torch.equal(says(model, result), logits)


@pytest.mark.filterwarnings("ignore:Computing zero point of output accumulator:UserWarning:brevitas")
@pytest.mark.filterwarnings("ignore:Could not compute output scale factor:UserWarning:brevitas")
def test_they_are_so_without_the_backends_inference_too(digits):
    result, _ = digits
    model = qplug.load_quantized(str(result.folder), device="cpu")
    pixels = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model(pixels)
    with backend_of("brevitas", installed()).inference(model):
        assert torch.equal(model(pixels), plain)


def test_the_file_is_as_large_as_the_run_says(digits):
    """To the byte, but for scales, which are in plan.json, and what each tensor's name takes."""
    result, _ = digits
    path = result.folder / "model.safetensors"
    tensors = load_file(path)
    weights = [d for d in result.plan if d.site.kind.is_weight]
    scales = sum(d.quantizer.storage_bits(d.site.shape) - d.site.numel * d.quantizer.bits for d in weights) // 8
    claimed = round(result.metrics["size_mb"] * 1e6)
    assert sum(tensor.nbytes for tensor in tensors.values()) == claimed - scales
    assert 0.95 < path.stat().st_size / claimed < 1.05  # measured: 0.97
    assert {d.site.name + ".codes" for d in weights} == {n for n, one in tensors.items() if one.dtype == torch.uint8}
    assert len(weights) == 18
    assert result.warnings == []


def test_the_original_checkpoint_may_be_gone(tmp_path):
    model = toy_vit()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    prepared = "{input_size: [3, 16, 16], mean: [0.5, 0.5, 0.5], std: [1, 1, 1], interpolation: bicubic, crop_pct: 1.0}"
    source = f'source: import, target: "qplug.testing:toy_vit", preprocessing: {prepared}'
    text = toy_recipe("{use: baseline.minmax}", f"{{{source}, checkpoint_path: {tmp_path / 'weights.safetensors'}}}")
    result, logits = quantized(text, tmp_path / "run")
    (tmp_path / "weights.safetensors").unlink()
    registry = toy_registry()
    assert torch.equal(says(qplug.load_quantized(tmp_path / "run", registry=registry), result, registry), logits)


def test_timms_architecture_needs_neither_checkpoint_nor_network():
    config = {"source": "timm", "name": "test_vit", "num_classes": 7}
    for weights in ({"checkpoint_path": "/gone/model.safetensors"}, {"pretrained": True}):
        source = TimmModel(TimmModel.Config.model_validate(config | weights)).architecture()
        assert source.module.num_classes == 7


def test_what_rewrote_the_model_rewrites_it_again(tmp_path):
    registry = toy_registry()
    text = toy_recipe("{use: fq_vit.log_int_softmax, integer_exp: true, step: 0.125}, {use: baseline.minmax}")
    result, logits = quantized(text, tmp_path / "run", registry)
    model = qplug.load_quantized(tmp_path / "run", registry=registry)
    assert torch.equal(says(model, result, registry), logits)
    assert [m.step for m in model.modules() if type(m).__name__ == "IntegerSoftmax"] == [0.125, 0.125]


@pytest.mark.parametrize("steps", ["0.0625", "0.125, integer_exp: false"])
def test_a_rewrite_that_is_not_made_again_is_refused_by_name(tmp_path, steps):
    """As by a technique whose code changed since."""
    registry = toy_registry()
    text = toy_recipe("{use: fq_vit.log_int_softmax, integer_exp: true, step: 0.125}, {use: baseline.minmax}")
    quantized(text, tmp_path / "run", registry)
    if "false" in steps:
        path = tmp_path / "run" / "recipe.yaml"
        path.write_text(path.read_text().replace("integer_exp: true", "integer_exp: false"))
    else:
        rewrite_plan(tmp_path / "run", lambda plan: plan["changes"][1].update(reason="another exponential"))
    relocked(tmp_path / "run")
    with pytest.raises(
        InputError, match=r"log_int_softmax does not rewrite blocks\.[01]\.attn\.softmax as it did in the run"
    ) as error:
        qplug.load_quantized(tmp_path / "run", registry=registry)
    assert error.value.where.endswith("plan.json")


def example_of(page: str, word: str) -> str:
    """The Python of a page that has ``word``."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    (example,) = (block for block in blocks if word in block)
    return example


@pytest.mark.filterwarnings("ignore:Computing zero point of output accumulator:UserWarning:brevitas")
@pytest.mark.filterwarnings("ignore:Could not compute output scale factor:UserWarning:brevitas")
def test_the_example_on_deploying_works(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits[0].folder, "runs/w6")
    names: dict[str, object] = {}
    exec(example_of("docs/deploying.md", "load_"), names)
    assert names["logits"].shape == (1, 10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::Warning")  # of the exporters that it calls
def test_the_readmes_example_works(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    names: dict[str, object] = {
        "model": timm.create_model("test_resnet", num_classes=37),
        "loader": images.split(8),
        "my_metric": lambda model: {"brightest": model(images).max().item()},
    }
    exec(example_of("README.md", "quantize("), names)
    assert "brightest" in capsys.readouterr().out
    assert {"float.brightest", "quantized.brightest"} <= names["result"].metrics.keys()
    loaded = qplug.load_quantized(tmp_path / "runs/w8a8", model=names["model"])
    with torch.no_grad():
        assert torch.equal(loaded(images), names["result"].model(images))
    assert (tmp_path / "model.onnx").is_file()


# what is wrong


def refused(folder: Path, relock: bool = True) -> InputError:
    """The refusal of a folder, by default with digests as if the run had written what is in it."""
    if relock:
        relocked(folder)
    with pytest.raises(InputError) as caught:
        qplug.load_quantized(folder, registry=toy_registry())
    assert caught.value.fix
    return caught.value


WEIGHT = "blocks.1.mlp.fc2.weight"
CODES = f"{WEIGHT}.codes"
BIAS = "blocks.0.norm1.bias"


@pytest.mark.parametrize("keep", [0, 7, 200, -1])
def test_a_truncated_file(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    error = refused(folder)
    assert "cannot be read" in error.what
    assert error.where == str(path)
    assert "run its recipe again" in error.fix


def test_a_single_bit_that_fell_over(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    error = refused(folder)
    assert "is damaged" in error.what
    assert error.where == str(path)


def test_weights_that_another_program_wrote(folder):
    (folder / "model.safetensors").write_bytes(save(toy_vit().state_dict()))
    assert "is damaged" in refused(folder).what


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(CODES), f"{WEIGHT} is missing"),
        (lambda t: t.pop(BIAS), f"{BIAS} is missing"),
        (lambda t: t.update({BIAS: torch.zeros(3)}), r"blocks.0.norm1.bias is \(3,\), and \(\d+,\) in the model"),
        (lambda t: t.update(more=torch.zeros(3)), "more is unknown to it"),
        (
            lambda t: t.update({CODES: t[CODES][:-1].clone()}),
            f"{WEIGHT} does not belong to plan.json .*uint8, received",
        ),
    ],
)
def test_tensors_that_are_not_those_of_the_run(folder, change, message):
    rewrite_weights(folder, change)
    error = refused(folder)
    assert re.search(message, error.what)
    assert error.where == str(folder / "model.safetensors")


def rename(plan) -> None:
    plan["decisions"][-1]["site"].update(name="blocks.7.mlp.fc1.input", module="blocks.7.mlp.fc1", role="input")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "quantizes blocks.7.mlp.fc1.input"),
        (lambda plan: plan["decisions"][1]["site"].update(shape=[5]), "which the recipe's model lacks"),
        (lambda plan: plan.update(format=99), "a plan of format 99, this version reads"),
        (lambda plan: plan.pop("decisions"), "holds no plan: decisions: field required"),
        (lambda plan: plan["decisions"][0]["quantizer"].update(kind="gone"), "the plan uses quantizer 'gone'"),
        (lambda plan: plan["decisions"][0].update(site=3), "holds no plan: decisions.0.site"),
    ],
)
def test_a_plan_that_is_not_that_of_the_model(folder, change, message):
    rewrite_plan(folder, change)
    error = refused(folder)
    assert message in error.what
    assert error.where == str(folder / "plan.json")


def test_a_folder_of_another_format(folder):
    (folder / "lock.json").write_text('{"format": 2, "qplug": "0.1.0"}')
    assert "of format 5 was expected, received 2" in refused(folder, relock=False).what


def test_a_folder_whose_recipe_was_edited(folder):
    path = folder / "recipe.yaml"
    path.write_text(path.read_text().replace("source: toy", "source: zoo\n  name: vit_digits", 1))
    assert "does not fit the model that the recipe names" in refused(folder).what


def test_no_folder_and_no_device(whole, tmp_path):
    with pytest.raises(InputError, match="no such run folder"):
        qplug.load_quantized(tmp_path / "nowhere")
    with pytest.raises(InputError, match="'nonsense' cannot be used"):
        qplug.load_quantized(whole, device="nonsense")


def test_the_file_says_what_it_is(whole):
    with safe_open(whole / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"fingerprint": fingerprint(load_file(whole / "model.safetensors"))}


def test_a_file_that_was_added_is_refused_where_the_models_source_reads_the_folder(folder):
    """Such as a tokenizer's file; a note beside a run of another source harms nobody."""
    (folder / "added_tokens.json").write_text("{}")
    qplug.load_quantized(folder, registry=toy_registry())
    registry = toy_registry()
    reads = {"kept_in": lambda self, folder: self}
    registry.models["toy"] = type("Reads", (registry.models["toy"],), reads)
    with pytest.raises(InputError, match=r"holds added_tokens\.json, which the run did not write") as caught:
        qplug.load_quantized(folder, registry=registry, changed_code=True)
    assert caught.value.where == str(folder)
