"""A torchvision Mask R-CNN in memory: it takes lists of images of any size, before and after."""

import pytest
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

import qplug
from qplug import InputError

FAST = {
    "quantize": {"weights": {"bits": 8}, "activations": {"bits": 8, "symmetric": False}},
    "techniques": [{"use": "baseline.minmax"}],
}


def detector():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.Conv2d(16, 16, 2, 2), nn.ReLU())
        backbone.out_channels = 16
        return MaskRCNN(
            backbone,
            num_classes=4,
            rpn_anchor_generator=AnchorGenerator(((16, 32),), ((1.0,),)),
            box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
            mask_roi_pool=MultiScaleRoIAlign(["0"], 14, 2),
            min_size=64,
            max_size=96,
            rpn_post_nms_top_n_test=10,
            box_detections_per_img=5,
        )


def images(*sizes):
    return [torch.rand(3, *size, generator=torch.Generator().manual_seed(sum(size))) for size in sizes]


def target(image, **more):
    mask = torch.zeros(1, *image.shape[1:], dtype=torch.uint8)
    mask[0, 5:20, 5:20] = 1
    return {"boxes": torch.tensor([[5.0, 5.0, 20.0, 20.0]]), "labels": torch.tensor([1]), "masks": mask, **more}


def batch(*sizes):
    found = images(*sizes)
    return found, [target(image) for image in found]


@pytest.fixture(scope="module")
def result():
    return qplug.quantize(detector(), [batch((40, 50), (44, 52), (52, 50))], FAST, evaluation=[batch((45, 51))])


@pytest.mark.slow
def test_it_takes_and_returns_what_the_model_does(result):
    given = images((45, 61), (60, 40))
    with torch.no_grad():
        found, wanted = result.model(given), detector().eval()(given)
    assert [one["masks"].shape[2:] for one in found] == [(45, 61), (60, 40)]
    assert {*found[0]} == {*wanted[0]}
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one["scores"].sort()[0][-3:], other["scores"].sort()[0][-3:], atol=0.1)


@pytest.mark.slow
def test_average_precision_is_measured_on_targets(result):
    assert result.metrics["score"] == "ap"
    assert 0 <= result.metrics["quantized.ap"] <= 1
    assert result.metrics["images.evaluation"] == 1


@pytest.mark.slow
def test_a_saved_detector_loads_with_the_same_detections(result, tmp_path):
    loaded = qplug.load_quantized(result.save(tmp_path / "run"), model=detector())
    given = images((45, 61))
    with torch.no_grad():
        (found,), (wanted,) = loaded(given), result.model(given)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.slow
def test_an_export_is_refused_in_one_sentence(result, tmp_path):
    with pytest.raises(InputError, match="cannot express"):
        result.export(tmp_path / "detector.onnx")
    assert not (tmp_path / "detector.onnx").exists()


def test_inspect_takes_images():
    found = qplug.inspect(detector(), images((40, 50)))
    assert {"backbone.0.weight", "roi_heads.box_predictor.cls_score.weight"} <= {site.name for site in found.sites}


@pytest.mark.slow
def test_ones_own_function_gets_lists_too():
    seen = []

    def evaluate(model):
        seen.append(model(images((45, 61)))[0]["boxes"].shape)
        return {"found": float(len(seen))}

    calibration = [images((40, 50), (44, 52))]
    assert qplug.quantize(detector(), calibration, FAST, evaluate=evaluate).metrics["float.found"] == 1
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda image: ([image], []), "expected 1 targets, received 0"),
        (lambda image: [image], "expected 1 targets, received none"),
        (lambda image: ([image], [{"boxes": torch.zeros(1, 4)}]), "expected a target with boxes and labels"),
        (lambda image: ([image], [target(image, boxes=torch.tensor([[5.0, 5.0, 90.0, 20.0]]))]), "outside its image"),
        (lambda image: ([image], [target(image, boxes=torch.tensor([[5.0, 5.0, 5.0, 20.0]]))]), "a box is empty"),
        (lambda image: ([image], [target(image, labels=torch.tensor([1, 2]))]), "expected boxes"),
        (lambda image: ([image], [target(image, labels=torch.tensor([9]))]), "class 9"),
        (lambda image: ([image[0]], [target(image)]), "expected images"),
    ],
)
def test_bad_targets_are_one_clear_sentence(made, message):
    with pytest.raises(InputError, match=message):
        qplug.quantize(detector(), [images((40, 50))], FAST, evaluation=[made(images((44, 52))[0])])


def test_regions_are_cut_at_the_scale_of_the_canvas():
    """A canvas wider than the first images would make torchvision infer a scale of 1/4 in the place of 1/8."""
    from qplug.models.in_memory import MemoryModel

    config = MemoryModel.Config(source="memory", name="MaskRCNN", shape=(3, 96, 96), detector=True, task="detection")
    module = MemoryModel(config).given(detector()).load().module
    small = torch.zeros(1, 4, 96, 96)
    small[:, :, :64, :64] = 1
    with torch.no_grad():
        module(small)
    assert module.roi_heads.box_roi_pool.scales == [1 / 8]
