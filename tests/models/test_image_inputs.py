"""The canvas of a detector's images: sizes, padding, and what becomes of boxes."""

import pytest
import torch
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from qplug.core.instances import Instances
from qplug.models.image_inputs import DetectionPreprocessing

LABEL = Instances((50, 80), ((8.0, 5.0, 40.0, 25.0),), (1,), (False,), (640.0,))


def photo(height=50, width=80):
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Image.fromarray(pixels.numpy())


@pytest.mark.parametrize("size", [(50, 80), (80, 50), (64, 64), (33, 200)])
def test_it_resizes_as_torchvision_does(size):
    preparation = DetectionPreprocessing((3, 160, 160), short=64, sizes=True)
    expected, _ = GeneralizedRCNNTransform(64, 160, [0.0] * 3, [1.0] * 3)([preparation_image(size)])
    found = preparation.transform()(preparation_image(size))
    height, width = expected.image_sizes[0]
    assert torch.equal(found[:3, :height, :width], expected.tensors[0, :, :height, :width])
    assert found[3].sum() == height * width
    assert not found[:3, height:].any()
    assert not found[:3, :, width:].any()


def preparation_image(size):
    return torch.rand(3, *size, generator=torch.Generator().manual_seed(1))


def test_stretched_boxes_have_a_scale_for_each_axis():
    transform = DetectionPreprocessing((3, 100, 40), resize="stretch", order="BGR").transform()
    image = photo()
    assert transform(image).shape == (3, 100, 40)
    assert transform.label(image, LABEL).scale == (0.5, 2.0)
    assert transform.label(image, LABEL).boxes == LABEL.boxes


def test_the_order_of_channels_and_their_mean():
    image = Image.new("RGB", (4, 4), (255, 0, 51))
    plain = DetectionPreprocessing((3, 4, 4)).transform()(image)
    assert plain[:, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])
    turned = DetectionPreprocessing((3, 4, 4), (0.5,) * 3, (0.5,) * 3, order="BGR").transform()(image)
    assert turned[:, 0, 0].tolist() == pytest.approx([-0.6, -1.0, 1.0])


def test_antialiasing_is_that_of_pil():
    found = DetectionPreprocessing((3, 10, 16), resize="stretch", antialias=True).transform()(photo())
    expected = DetectionPreprocessing((3, 10, 16)).transform()(photo().resize((16, 10), Image.Resampling.BILINEAR))
    assert torch.equal(found, expected)
