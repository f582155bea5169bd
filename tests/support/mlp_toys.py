"""timm's MLP families at their smallest, the embedded ResMLP with an outlier, and runs on models that are given."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import nn

import qplug
from qplug.hooks.registry import installed
from qplug.models.float_model import FloatModel
from qplug.models.zoo import ZOO, weights
from qplug.pipeline.results import RunResult
from qplug.pipeline.run import run
from qplug.recipe.schema import recipe_type


def embedded(name: str) -> nn.Module:
    """The embedded model with its trained weights."""
    model = ZOO[name].build()
    model.load_state_dict(weights(name))
    return model.eval().requires_grad_(False)


def planted(size: float = 150.0, channel: int = 46) -> nn.Module:
    """The embedded ResMLP with one channel of every channel-mixing MLP's input ``size`` times as wide, and the same
    function: what the Affine gains, the first linear gives back. Channel 46 lies almost wholly on one side of 0.
    """
    model = embedded("resmlp_digits")
    for block in model.blocks:
        block.norm2.alpha[..., channel] *= size
        block.norm2.beta[..., channel] *= size
        block.mlp_channels.fc1.weight[:, channel] /= size
    return model


def quantized(model: nn.Module, *techniques: dict[str, Any], images: int = 64, **more: Any) -> RunResult:
    """A run on the digits at W8A8 (``activations`` changes what is asked of them), by the steps given."""

    class Given(qplug.ModelSource):
        class Config(qplug.Config):
            source: Literal["given"] = "given"

        def load(self) -> FloatModel:
            return FloatModel.of(copy.deepcopy(model), "given", ZOO["resmlp_digits"].preprocessing)

    registry = copy.copy(installed())
    registry.models = {**registry.models, "given": Given}
    recipe = recipe_type(registry).model_validate(
        {
            "version": 1,
            "model": {"source": "given"},
            "data": {
                "calibration": {"source": "digits", "split": "train", "images": images},
                "evaluation": {"source": "digits", "split": "test"},
            },
            "quantize": {"weights": {"bits": 8}, "activations": {"bits": 8, **more.pop("activations", {})}},
            "techniques": techniques or ({"use": "baseline.minmax"},),
            **more,
        }
    )
    return run(recipe, registry=registry)


def convmixer(**more: Any) -> nn.Module:
    """timm's ConvMixer of 8 channels and 2 blocks, for 16×16 images, with BatchNorms that do something."""
    from cnn_toys import lively
    from timm.models.convmixer import ConvMixer

    torch.manual_seed(0)
    return lively(ConvMixer(**{"dim": 8, "depth": 2, "kernel_size": 3, "patch_size": 4, "num_classes": 5, **more}))


def resmlp(**more: Any) -> nn.Module:
    """timm's ResMLP of 8 channels and 2 blocks, for 16×16 images."""
    from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock

    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "num_classes": 5, "embed_dim": 8, "num_blocks": 2, "mlp_ratio": 2.0}
    model = MlpMixer(**{**sizes, "block_layer": ResBlock, "norm_layer": Affine, **more})
    return model.eval().requires_grad_(False)
