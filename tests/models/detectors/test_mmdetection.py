"""The detectors compute what MMDetection 3.3.0 does, as ``record_mmdetection.py`` recorded it, and read its names."""

import json
from pathlib import Path

import pytest
import torch
from detector_toys import KINDS, images, small, weights

from qplug.models.detectors.build import ARCHITECTURES, build
from qplug.models.detectors.keys import ROWS, TWO_LINEAR, merging_order, translate

RECORDED = json.loads(Path(__file__).with_name("mmdetection.json").read_text())
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def detector(kind):
    """Our detector with MMDetection's weights, float64."""
    model = build(small(kind)).double().eval()
    model.load_state_dict(translate(weights(RECORDED[kind]["shapes"], kind)))
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_the_detections_are_those_of_mmdetection(kind):
    model, recorded = detector(kind), RECORDED[kind]
    with torch.no_grad():
        maps = model.backbone(model.transform(images())[0].tensors)
        found = model(images())
    places = torch.stack([level[:, 3, -1, 1] for level in maps.values()], 1)
    torch.testing.assert_close(places, torch.tensor(recorded["maps"], dtype=torch.float64), **CLOSE)
    for ours, theirs in zip(found, recorded["detections"], strict=True):
        assert len(ours["scores"]) == theirs["count"]
        first = len(theirs["scores"])
        for name in ("scores", "boxes"):
            torch.testing.assert_close(ours[name][:first], torch.tensor(theirs[name], dtype=torch.float64), **CLOSE)
        assert (ours["labels"][:first] - 1).tolist() == theirs["labels"]
        areas = (ours["masks"][:first, 0] >= 0.5).flatten(1).sum(1)
        assert (areas - torch.tensor(theirs["areas"])).abs().max() <= 1  # a probability of 0.5 may round either way
        assert sum(theirs["areas"]) > 500


def test_every_tensor_of_a_checkpoint_has_a_place():
    """Names and shapes of MMDetection's state, of both forms of box heads."""
    for kind, recorded in RECORDED.items():
        ours = {name: list(tensor.shape) for name, tensor in build(small(kind)).state_dict().items()}
        given = {name: torch.empty(shape) for name, shape in recorded["shapes"].items()}
        assert {name: list(tensor.shape) for name, tensor in translate(given).items()} == ours


def test_the_names_of_swins_authors_give_the_same_detector():
    """Their names are timm's, except that stages end with the merging of patches; its order is timm's."""
    given = weights(RECORDED["mask_rcnn"]["shapes"], "mask_rcnn")
    new = (".stages.", ".w_msa.", ".ffn.layers.0.0.", ".ffn.layers.1.", ".projection.")
    old = (".layers.", ".", ".mlp.fc1.", ".mlp.fc2.", ".proj.")
    authors = {}
    for name, tensor in given.items():
        for one, other in zip(new, old, strict=True):
            name = name.replace(one, other) if name.startswith("backbone.") else name
        merged = ".downsample." in name
        authors[name] = _by_hand(tensor) if merged else tensor
    assert any("layers.2.downsample" in name for name in authors)
    translated = translate(authors)
    assert translated.keys() == (expected := translate(given)).keys()
    assert all(torch.equal(translated[name], expected[name]) for name in expected)


def _by_hand(tensor):
    """Patches of MMDetection's order, channel by channel, in that of Swin's code: 0 0, 1 0, 0 1, 1 1 (row, column)."""
    channels = tensor.shape[-1] // 4
    order = [4 * c + 2 * row + column for row, column in ((0, 0), (1, 0), (0, 1), (1, 1)) for c in range(channels)]
    return tensor[..., order]


def test_merged_patches_are_put_in_timms_order():
    """``nn.Unfold`` on a map whose values name their place, against timm's reshape."""
    from timm.models.swin_transformer import PatchMerging

    x = torch.arange(2 * 4 * 4.0).reshape(1, 4, 4, 2)
    unfolded = torch.nn.functional.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
    merge = PatchMerging(2)
    merge.norm = merge.reduction = torch.nn.Identity()
    assert torch.equal(merging_order(unfolded).reshape(1, 2, 2, 8), merge(x))


def test_a_name_matches_one_row():
    for recorded in RECORDED.values():
        for name in recorded["shapes"]:
            rows = [row for row in ROWS if row.match(name) is not None]
            assert len(rows) == (0 if name.endswith("relative_position_index") else 1) or "shared_fcs" in name
    assert translate({"mask_iou_head.fc.weight": torch.ones(1)}).keys() == {"mask_iou_head.fc.weight"}


@pytest.mark.parametrize(("name", "millions"), [("mask_rcnn_swin_t", 48), ("cascade_mask_rcnn_swin_b", 145)])
def test_parameters_are_as_many_as_swins_authors_print(name, millions):
    with torch.device("meta"):
        model = build(ARCHITECTURES[name])
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions


def test_the_documentation_has_the_table():
    page = (Path(__file__).parents[3] / "docs" / "detectors.md").read_text()
    words = {None: "", "merging_order": "patches reordered", "background_first": "background first"}
    for row in (*ROWS, *TWO_LINEAR):
        assert f"| `{row.theirs}` | `{row.ours}` | {words[row.change and row.change.__name__]} |\n" in page
    assert page.count("\n| `backbone.") + page.count("\n| `neck.") == 24
