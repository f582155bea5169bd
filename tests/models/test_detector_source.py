"""``source: detector``: names, checkpoints and labels in a recipe."""

import pytest
import torch
from detector_toys import SWIN
from pydantic import ValidationError
from safetensors.torch import save_file

from qplug.core.errors import InputError
from qplug.models.detector_source import DetectorModel
from qplug.models.detectors import build as module


def source(**values):
    values = {"source": "detector", "name": "mask_rcnn_swin_t", "short": 64, "long": 96, **values}
    return DetectorModel(DetectorModel.Config(**values))


@pytest.fixture
def small(monkeypatch):
    """The detectors with fewer channels under the same names."""
    sizes = {"channels": 16, "hidden": 32, "proposals": 40, "overrides": SWIN}
    small = {name: module.replace(one, **sizes) for name, one in module.ARCHITECTURES.items()}
    monkeypatch.setattr(module, "ARCHITECTURES", small)


@pytest.mark.parametrize("name", ["mask_rcnn_swin_t", "cascade_mask_rcnn_swin_s"])
def test_a_batch_on_a_canvas_gives_rows_of_detections(small, name):
    loaded = source(name=name).load()
    assert loaded.name == name
    assert "the weights are random" in loaded.note
    assert "RoIAlign" in loaded.note
    assert loaded.preprocessing.input_size == (3, 96, 96)
    with torch.no_grad():
        rows = loaded.task.read(loaded.module(loaded.preprocessing.example()))
    assert rows.shape == (1, 100, 6 + 28**2)
    assert loaded.task.classes_known == 91


def test_a_checkpoint_loads_and_changes_the_key(small, tmp_path):
    state = source().load().module.state_dict()
    path = tmp_path / "own.safetensors"
    save_file(state, path)
    loaded = source(checkpoint_path=str(path))
    assert "random" not in loaded.load().note
    assert "checkpoint" in loaded.key()
    assert loaded.key() != source().key()
    with pytest.raises(InputError, match="detects 80 classes, and the model 5"):
        source(checkpoint_path=str(path), classes=5, labels="counted").load()


def test_a_missing_checkpoint_is_named(small):
    with pytest.raises(InputError, match="path/to"):
        source(checkpoint_path="path/to/mask_rcnn.pth").load()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"classes": 3}, "COCO has 80 categories, and the model 3: set labels: counted"),
        ({"short": 800, "long": 640}, "the shorter side, 800 pixels, exceeds the longer one, 640"),
        ({"name": "mask_rcnn_swin_b"}, "cascade_mask_rcnn_swin_b"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        source(**values)


@pytest.mark.slow
def test_every_linear_and_convolution_is_a_site_and_windows_have_both_products(small):
    from qplug.models.adapters import ADAPTERS, make_explicit
    from qplug.models.interface import settle_interface
    from qplug.quantization.sites import find_sites

    loaded = source(name="cascade_mask_rcnn_swin_t").load()
    model, example = loaded.module, loaded.preprocessing.example()
    settle_interface(model, example, loaded.task, loaded.name)
    make_explicit(model, ADAPTERS, example)
    found = find_sites(model, example)
    layers = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    expected = {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, layers)}
    sites = {site.name for site in found.sites}
    assert expected <= sites
    assert not found.left
    block = "backbone.body.layers_2.blocks.1.attn."
    products = {site.name for site in found.sites if site.name.startswith(block) and site.role in ("lhs", "rhs")}
    assert len(products) == 4
    assert "backbone.fpn.inner_blocks.3.0.input" in sites
    assert "rpn.head.cls_logits.input" in sites
    assert "roi_heads.mask_predictor.2.mask_fcn_logits.input" in sites
