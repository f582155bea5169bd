"""Small models whose forward does what many published ones do, and nothing that the others of this folder do."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qplug.core.task import CLASSIFICATION
from qplug.data.memory import AsItIs, TensorExamples
from qplug.data.stream import Stream
from qplug.models.float_model import FloatModel

SIZE = (3, 8, 8)
RECIPE = {
    "version": 1,
    "model": {"source": "zoo", "name": "vit_digits"},
    "data": {
        "calibration": {"source": "digits", "split": "train"},
        "evaluation": {"source": "digits", "split": "test"},
    },
    "quantize": {"weights": {"bits": 8}, "activations": {"bits": 8, "symmetric": False}},
    "techniques": [{"use": "baseline.hessian"}],
}
Named = namedtuple("Named", ["logits", "features"])


@dataclass
class Output:
    """As transformers and diffusers return."""

    loss: Tensor | None
    logits: Tensor


class Net(nn.Module):
    """A convolution, a ReLU and a linear head; subclasses change what they return or how they compute."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv, self.bn, self.head = nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x))).mean((2, 3))

    def forward(self, x: Tensor):
        return self.head(self.features(x))


def returning(change) -> nn.Module:
    """``Net`` whose answer is ``change(outputs)``."""

    class Returning(Net):
        def forward(self, x: Tensor):
            return change(super().forward(x))

    return Returning()


def images(count: int = 6, seed: int = 0) -> Tensor:
    """(count, 3, 8, 8) float32."""
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(seed))


def opened(model: nn.Module, count: int = 6, batch_size: int = 4) -> tuple[FloatModel, Stream]:
    """The model and its images, as ``load`` has them."""
    examples = TensorExamples([images(count)], "calibration")
    source = FloatModel.of(model, "toy", AsItIs.of(examples), task_name=CLASSIFICATION.name)
    return source, Stream(examples, source.preprocessing, batch_size)
