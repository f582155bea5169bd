"""Every block of the page "In Python" runs, in its order, in one namespace."""

import re

import pytest
from paths import ROOT

PAGE = ROOT / "docs" / "python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_a_model_takes_at_most_five_lines():
    for block in BLOCKS[1:]:
        if "qplug.quantize(" in block:
            assert len(block.strip().splitlines()) <= 5, block


@pytest.mark.slow
def test_every_block_runs(tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    names: dict = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for block in (block for block in BLOCKS if "pictures" not in block):
            exec(compile(block, str(PAGE), "exec"), names)
    assert (tmp_path / "runs" / "two" / "lock.json").is_file()
    assert (tmp_path / "two.onnx").is_file()
    assert "</table>" in (tmp_path / "two.html").read_text()
    assert names["logits"].shape == (16, 2)
    for found, wanted in zip(names["loaded"](names["images"]), names["result"].model(names["images"]), strict=True):
        assert torch.equal(found, wanted)
    assert [result.metrics["bits.weights_mean"] for result in names["results"]] == [8, 4]
    assert all(
        result.metrics["float.accuracy"] == names["accuracy"](names["model"].eval())["accuracy"]
        for result in names["results"]
    )
    assert names["worst"].site.module in ("trunk.0", "classes", "box")


@pytest.mark.slow
def test_the_block_of_a_detector_runs():
    import torch

    names: dict = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for block in (block for block in BLOCKS if "import qplug" in block or "pictures" in block):
            names["recipe"] = {
                "quantize": {"weights": {"bits": 8}, "activations": {"bits": 8, "symmetric": False}},
                "techniques": [{"use": "baseline.minmax"}],
            }
            exec(compile(block, str(PAGE), "exec"), names)
    assert [one["masks"].shape[2:] for one in names["detections"]] == [(40, 50), (48, 36)]
