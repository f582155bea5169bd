"""``qplug inspect --ranges`` and ``--hessian`` on the embedded models, and every way in which they refuse."""

from __future__ import annotations

import io
import json
import signal

import pytest
from PIL import Image
from safetensors.torch import save_file

import qplug
from qplug.cli import main

RECIPE = """
version: 1
model: {{source: zoo, name: {model}}}
data:
  calibration: {{source: digits, split: train, images: 8}}
  evaluation: {{source: digits, split: test, images: 20}}
quantize: {{weights: {{bits: 8}}, activations: {{bits: 8}}}}
techniques: [{technique}, {{use: baseline.minmax}}]
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, model, technique in (
        ("mixers", "mixer_digits", "{use: qmlp.token_mixers}"),
        ("norms", "resmlp_digits", "{use: qmlp.norm}"),
        ("nothing", "mixer_digits", "{use: baseline.ema}"),
    ):
        (tmp_path / f"{name}.yaml").write_text(RECIPE.format(model=model, technique=technique))
    return tmp_path


def call(*arguments):
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["inspect", *map(str, arguments)])
    finally:
        signal.signal(signal.SIGTERM, before)
    return int(ended.value.code or 0)


@pytest.mark.slow
def test_token_mixers_before_and_after(capsys, place):
    options = ("--calibration-images", 8, "--hessian-probes", 4)
    asked = ("--ranges", "--hessian", "--after", "mixers.yaml", "--picture", "a.svg")
    assert call("mixer_digits", *asked, *options, "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["status"], value["model"]) == ("done", "mixer_digits")
    assert (value["protocol"]["images"], value["protocol"]["ranges"]["percentile"]) == (8, 99.0)
    assert value["protocol"]["hessian"]["probes_at_most"] == 4
    assert (value["before"]["changes"], value["after"]["origin"]) == ([], "mixers.yaml")
    assert [change["where"] for change in value["after"]["changes"]] == [f"blocks.{i}.mlp_tokens" for i in range(4)]
    before, after = ({one["name"]: one for one in value[when]["ranges"]} for when in ("before", "after"))
    assert len(before) == 22
    assert len(after) == 46
    assert after["blocks.3"]["largest"] == pytest.approx(before["blocks.3"]["largest"], rel=1e-4)  # the same function
    groups = [after[f"blocks.1.mlp_tokens.mixers.{i}.fc1.input"]["largest"] for i in range(4)]
    assert max(groups) == pytest.approx(before["blocks.1.mlp_tokens.fc1.input"]["largest"], rel=1e-4)
    traces = {(one["block"], one["mixing"]): one for one in value["before"]["hessian"]}
    assert len(traces) == 8
    token, channel = traces["blocks.0", "token"], traces["blocks.0", "channel"]
    assert token["per_parameter"] > 4 * channel["per_parameter"]  # measured: 32 times, with 300 probes on 32 images
    assert (token["parameters"], token["probes"]) == (1072, 4)
    assert value["after"]["hessian"][0]["parameters"] == 4 * 1072
    assert "have not settled to 0.001 after 4 probes" in value["warnings"][-1]
    drawn = (place / "a.svg").read_text()
    assert drawn.startswith("<?xml")


@pytest.mark.slow
def test_a_table_of_norms_and_a_run_folder_of_them(capsys, place):
    assert call("resmlp_digits", "--ranges", "--calibration-images", 8, "--after", "norms.yaml") == 0
    text = capsys.readouterr().out
    assert "Activation ranges of resmlp_digits" in text
    assert "9 × qmlp.norm: Affine → LayerNorm" in text
    assert "training has to make up for it" in text
    row = next(line.split() for line in text.splitlines() if line.startswith("blocks.3.mlp_channels.fc1.input"))
    assert float(row[4]) < 0.5 * float(row[3])  # the maximum behind a LayerNorm; measured: 5.5 and 19.4 on 32 images
    qplug.run(qplug.load_recipe("norms.yaml"), out=place / "run")
    capsys.readouterr()
    assert call("resmlp_digits", "--ranges", "--calibration-images", 8, "--after", "run", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert "rounded to 8 bits on average" in value["warnings"][0]
    largest = next(one for one in value["after"]["ranges"] if one["name"] == "blocks.3.mlp_channels.fc1.input")
    assert largest["largest"] == pytest.approx(float(row[4]), rel=0.1)
    assert value["after"]["hessian"] == []


def test_parquet_images_and_own_weights(capsys, place):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs 'qplug[hf]'")
    import pyarrow

    from qplug.models.zoo import ZOO

    save_file(ZOO["resmlp_cifar10"].build().state_dict(), place / "own.safetensors")
    for split, value in (("train", 90), ("test", 250)):
        stream = io.BytesIO()
        Image.new("RGB", (32, 32), (value, value, value)).save(stream, "PNG")
        columns = {"image": [{"bytes": stream.getvalue(), "path": None}] * 4, "label": [0] * 4}
        parquet.write_table(pyarrow.table(columns), place / f"{split}.parquet")
    given = ("--checkpoint", "own.safetensors", "--calibration", ".", "--calibration-images", 3)
    assert call("resmlp_cifar10", "--ranges", *given, "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["protocol"]["images"] == 3
    pixels = next(one for one in value["before"]["ranges"] if one["name"] == "stem.proj.input")
    assert pixels["largest"] == pytest.approx((0.4914 - 90 / 255) / 0.2470, rel=1e-4)  # dark: those of train


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["mixer_digits", "--picture", "a.svg"], ["--picture: needs --ranges or --hessian, which was not given"]),
        (["mixer_digits", "--seed", "1"], ["--seed: needs --ranges or --hessian"]),
        (["mixer_digits", "--ranges", "--hessian-probes", "3"], ["--hessian-probes: needs --hessian, which"]),
        (["mixer_digits", "--ranges", "--accounting", "q-mlp"], ["--accounting: has no effect with --ranges"]),
        (["mixer_digits", "--ranges", "--picture", "a.jpg"], ["--picture: expected a name in .png or .svg"]),
        (
            ["mixer_digits", "--ranges", "--after", "nothing.yaml"],
            ["nothing.yaml: no technique of this recipe rewrites mixer_"],
        ),
        (["mixer_digits", "--ranges", "--after", "none.yaml"], ["none.yaml: there is no such file"]),
        (["mixer_digits", "--ranges", "--after", "."], ["is not a run folder"]),
        (
            ["mixer_digits", "--hessian", "--token-mixing", "x.*"],
            ["--hessian: expected linears or convolutions that mix tokens", "--token-mixing PATTERN"],
        ),
        (["mixer_digits", "--hessian", "--token-mixing", ""], ["--token-mixing: "]),
        (
            ["deit_tiny_patch16_224", "--ranges"],
            ["needs images to analyze, and --calibration was not given", "add --calibration FOLDER, a folder"],
        ),
        (
            ["mixer_cifar10", "--ranges"],
            ["no checkpoint was given: 'qplug zoo train mixer_cifar10"],
        ),
        (
            ["mixer_cifar10", "--ranges", "--checkpoint", "x"],
            ["mixer_cifar10 needs images", "parquet files"],
        ),
        (["mixer_digits", "--ranges", "--device", "nowhere"], ["device 'nowhere' cannot be used"]),
    ],
)
def test_unusable_arguments_are_refused(capsys, place, arguments, messages):
    before = sorted(place.iterdir())
    assert call(*arguments) == 2
    text, errors = capsys.readouterr()
    assert text == ""
    for message in messages:
        assert message in errors
    assert "Traceback" not in errors
    assert sorted(place.iterdir()) == before
