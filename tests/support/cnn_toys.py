"""timm's convolutional families at their smallest, with BatchNorms that do something, as a trained model's do."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("resnet10t", {}),
    "resnet_bottleneck": ("resnet26", {}),
    "mobilenetv1": ("mobilenetv1_100", {}),
    "mobilenetv2": ("mobilenetv2_035", {}),
    "mobilenetv3": ("mobilenetv3_small_050", {}),
    "mobilenetv3_same": ("tf_mobilenetv3_small_minimal_100", {}),
    "mnasnet": ("mnasnet_small", {}),
    "regnetx": ("regnetx_002", {}),
}
"""Family → timm's name of a small member, and what it is made with."""


def lively(model: nn.Module) -> nn.Module:
    """The same with random statistics and parameters in its BatchNorms, in eval mode."""
    generator = torch.Generator().manual_seed(0)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                for tensor, low, high in (
                    *((norm.running_mean, -0.2, 0.2), (norm.running_var, 0.5, 1.5)),
                    *((norm.weight, 0.5, 1.5), (norm.bias, -0.2, 0.2)),
                ):
                    if tensor is not None:
                        tensor.copy_(uniform(tensor, low, high))
    return model.eval().requires_grad_(False)


def family(name: str) -> nn.Module:
    """The small member of a family, with 7 classes."""
    import timm

    architecture, more = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return lively(timm.create_model(architecture, num_classes=7, **more))


def small_mobilenet(*stages: str) -> nn.Module:
    """A MobileNetV1 of at most 32 channels, with TensorFlow's padding as its real weights have it.

    Args:
        stages: in timm's notation, in the place of its own.
    """
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.efficientnet import EfficientNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = EfficientNet(
            block_args=decode_arch_def([[stage] for stage in stages or ("dsa_r1_k3_s1_c16", "dsa_r2_k3_s2_c32")]),
            num_features=0,
            stem_size=8,
            num_classes=5,
            pad_type="same",
            norm_layer=partial(nn.BatchNorm2d, eps=1e-3),
            act_layer=nn.ReLU6,
        )
    return lively(model)
