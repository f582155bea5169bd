"""Classes of torch, timm, torchvision and transformers that are blocks. Importing this module does not import torch."""

from __future__ import annotations

_TIMM = {
    "vision_transformer": ("Block", "ResPostBlock", "ParallelScalingBlock", "ParallelThingsBlock"),
    "beit": ("Block",),
    "cait": ("LayerScaleBlock",),
    "swin_transformer": ("SwinTransformerBlock",),
    "swin_transformer_v2": ("SwinTransformerV2Block",),
    "mlp_mixer": ("MixerBlock", "ResBlock", "SpatialGatingBlock"),
    "convnext": ("ConvNeXtBlock",),
    "resnet": ("BasicBlock", "Bottleneck"),
    "resnetv2": ("PreActBasic", "PreActBottleneck", "Bottleneck"),
    "regnet": ("Bottleneck", "PreBottleneck"),
    "_efficientnet_blocks": (
        *("ConvBnAct", "DepthwiseSeparableConv", "InvertedResidual", "UniversalInvertedResidual", "EdgeResidual"),
        "MobileAttention",
    ),
}
_TORCHVISION = {
    "resnet": ("BasicBlock", "Bottleneck"),
    "regnet": ("ResBottleneckBlock",),
    "mobilenetv2": ("InvertedResidual",),
    "mobilenetv3": ("InvertedResidual",),
    "mnasnet": ("_InvertedResidual",),
    "efficientnet": ("MBConv", "FusedMBConv"),
    "convnext": ("CNBlock",),
    "vision_transformer": ("EncoderBlock",),
}
_TRANSFORMERS = {"bert.modeling_bert": ("BertLayer",), "distilbert.modeling_distilbert": ("TransformerBlock",)}

BLOCKS = [
    f"{package}.models.{module}:{name}"
    for package, modules in (("timm", _TIMM), ("torchvision", _TORCHVISION), ("transformers", _TRANSFORMERS))
    for module, names in modules.items()
    for name in names
]
BLOCKS += [f"torch.nn.modules.transformer:{name}" for name in ("TransformerEncoderLayer", "TransformerDecoderLayer")]
"""``module:Class`` of each block class. Instances of its subclasses are blocks, too."""
