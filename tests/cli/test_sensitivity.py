"""``qplug sensitivity`` on the embedded model, and every way in which it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT
from PIL import Image

from qplug.cli import main

QUICK = ("--calibration-images", "8", "--evaluation-images", "20", "--match", "blocks.3.*", "--match", "head*")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments):
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["sensitivity", *map(str, arguments)])
    finally:
        signal.signal(signal.SIGTERM, before)
    return int(ended.value.code or 0)


def folder(path, colors):
    """A folder with one class of plain 16×16 images."""
    (path / "one").mkdir(parents=True)
    for color in colors:
        pixels = np.random.default_rng(color).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / "one" / f"{color}.png")
    return path


def test_for_people(capsys, place):
    assert call("vit_digits", *QUICK, "--bits", "6,4", "--top", 5, "--picture", "a.svg") == 0
    text, _ = capsys.readouterr()
    assert "Sensitivity of vit_digits, the 5 most sensitive of 14" in text
    table = text.partition("\n\n")[0].splitlines()
    assert table[1].split()[:4] == ["site", "kind", "top-1", "changed"]
    drops = [float(line.split()[2]) for line in table[2:7]]
    assert drops == sorted(drops, reverse=True)
    assert "8 calibration images, 20 evaluation images; seed 0" in text
    assert "How well do the cheap measures predict the damage?" in text
    assert "Hessian trace" not in text
    assert "\x1b" not in text
    assert (place / "a.svg").read_text().startswith("<?xml")
    assert [path.name for path in place.iterdir()] == ["a.svg"]


@pytest.mark.slow
def test_for_machines(capsys, place):
    arguments = (*QUICK, "--hessian", "--hessian-probes", 2, "--drop-bits", 3, "--softmax", "--layernorm", "--seed", 1)
    assert call("vit_digits", *arguments, "--json", "--out", "a.json") == 0
    text = capsys.readouterr().out
    value = json.loads(text)
    written = json.loads((place / "a.json").read_text())
    assert written == value
    assert value["status"] == "done"
    assert value["protocol"]["bits"] == [8, 6, 4]
    assert value["protocol"]["drop_bits"] == 3
    assert value["protocol"]["seed"] == 1
    assert value["protocol"]["ranges"] == ["baseline.hessian"]
    assert value["protocol"]["images"] == {"calibration": 8, "evaluation": 20}
    sites = {site["name"]: site for site in value["sites"]}
    assert {"blocks.3.attn.softmax.input", "blocks.3.norm1.input", "head.weight"} < set(sites)
    assert sites["head.weight"]["quantizer"] == "uniform int3 ×10"
    assert sites["head.weight"]["hessian.probes"] == 2
    assert all(site["sqnr_db.8"] > site["sqnr_db.4"] for site in sites.values())
    assert all(0 <= site["drop"] <= 1 for site in sites.values())
    assert set(value["correlations"]) == {"weights", "activations"}


@pytest.mark.slow
def test_own_images_and_ranges(capsys, place):
    calibration, evaluation = folder(place / "a", range(4)), folder(place / "b", range(4, 9))
    (place / "classes.txt").write_text("one\n")
    given = ("--calibration", calibration, "--evaluation", evaluation, "--class-map", "classes.txt")
    ranges = ("--ranges", "tsptq_vit.v_2sf", "--ranges", "baseline.minmax")
    match = ("--match", "post_softmax", "--match", "head.weight")
    assert call("vit_digits", *given, *ranges, *match, "--calibration-images", 4, "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["protocol"]["images"] == {"calibration": 4, "evaluation": 5}
    techniques = {site["name"]: site["technique"] for site in value["sites"]}
    assert techniques.pop("head.weight") == "baseline.minmax"
    assert set(techniques.values()) == {"tsptq_vit.v_2sf"}
    assert value["warnings"] == []


def test_matplotlib_waits_for_a_picture(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "qplug.cli.report.sensitivity_picture", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # importing it would fail
    assert call("vit_digits", *QUICK, "--bits", 4, "--match", "head.weight") == 0
    assert call("vit_digits", *QUICK, "--picture", "a.png") == 1
    assert "matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["vit_digit", "--calibration", ".", "--evaluation", "."], ["timm has no model 'vit_digit'"]),
        (["vit_digit"], ["--calibration and --evaluation were not given", "embedded models (vit_digits"]),
        (["no.such:thing", "--calibration", ".", "--evaluation", "."], ["no.such:thing cannot be imported"]),
        (
            ["deit_tiny_patch16_224"],
            [
                "needs images to calibrate and to measure on, and --calibration and --evaluation were not given",
                "add --calibration FOLDER --evaluation FOLDER",
            ],
        ),
        (["vit_digits", "--calibration", "."], ["--evaluation was not given"]),
        (["vit_digits", "--class-map", "map.txt"], ["--calibration and --evaluation were not given"]),
        (["vit_digits", "--calibration", "none", "--evaluation", "none"], ["none: the folder does not exist"]),
        (["vit_digits", "--evaluation-images", "600"], ["expected 1 … 599 images, received 600"]),
        (["vit_digits", "--bits", "8,x"], ["--bits: expected bits such as 8,6,4, received '8,x'"]),
        (["vit_digits", "--bits", "8,1"], ["--bits: ", "greater than or equal to 2, received 1"]),
        (["vit_digits", "--bits", "17"], ["--bits: ", "less than or equal to 16, received 17"]),
        (["vit_digits", "--drop-bits", "1"], ["--drop-bits: ", "received 1"]),
        (["vit_digits", "--seed", str(2**32)], ["--seed: "]),
        (["vit_digits", "--match", "nothing.*"], ["--match: 'nothing.*' matches no site", "qplug inspect MODEL"]),
        (["vit_digits", "--match", "softmax_input"], ["out of scope", "--softmax"]),
        (["vit_digits", "--ranges", "baseline.minma"], ["did you mean 'baseline.minmax'"]),
        (["vit_digits", "--ranges", "mptq_vit.greedy_mp"], ["--ranges: mptq_vit.greedy_mp makes no quantizers"]),
        (["vit_digits", *QUICK, "--ranges", "tsptq_vit.v_2sf"], ["--ranges: no technique", "add --ranges baseline."]),
        (["vit_digits", "--hessian-probes", "4"], ["--hessian-probes: needs --hessian"]),
        (["vit_digits", "--out", "none/a.json"], ["none: there is no such folder"]),
        (["vit_digits", "--out", "."], ["is a folder", "--out"]),
        (["vit_digits", "--picture", "a.jpg"], ["--picture: expected a name in .png or .svg, received 'a.jpg'"]),
        (["vit_digits", "--device", "nowhere"], ["device 'nowhere' cannot be used"]),
    ],
)
def test_unusable_arguments_are_refused_and_nothing_is_written(capsys, place, arguments, messages):
    wanted = () if "--out" in arguments else ("--out", "a.json")
    assert call(*arguments, *wanted) == 2
    text, errors = capsys.readouterr()
    assert text == ""
    for message in messages:
        assert message in errors
    assert "Traceback" not in errors
    assert list(place.iterdir()) == []


def test_errors_for_machines(capsys):
    assert call("vit_digits", "--bits", "1", "--json") == 2
    value = json.loads(capsys.readouterr().out)
    assert (value["status"], value["problems"][0]["where"]) == ("error", "--bits")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_folder_that_cannot_be_written_to_is_refused(capsys, place):
    (place / "closed").mkdir(mode=0o500)
    assert call("vit_digits", "--out", "closed/a.json") == 2
    assert "cannot be written to" in capsys.readouterr().err


@pytest.mark.slow
def test_a_report_that_exists_is_replaced_as_a_whole(place, monkeypatch, capsys):
    (place / "a.json").write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert call("vit_digits", *QUICK, "--bits", 4, "--out", "a.json") == 1
    assert "a.json: cannot be written: No space left on device" in capsys.readouterr().err
    assert (place / "a.json").read_text() == "old"
    assert [path.name for path in place.iterdir()] == ["a.json"]
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert call("vit_digits", *QUICK, "--bits", 4, "--out", "a.json") == 0
    assert json.loads((place / "a.json").read_text())["status"] == "done"


def test_help_imports_nothing_heavy():
    code = (
        "import sys, atexit\n"
        "heavy = ['torch', 'timm', 'brevitas', 'numpy', 'sklearn', 'scipy', 'matplotlib']\n"
        "atexit.register(lambda: print('heavy:', [name for name in heavy if name in sys.modules]))\n"
        "from qplug.cli import main\nmain(['sensitivity', '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "--hessian-probes" in done.stdout
    assert done.stdout.rstrip().endswith("heavy: []")
