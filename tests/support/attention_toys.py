"""Small instances of timm's attentions, each in a model of its own that passes the arguments that timm passes."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from numeric_toys import Sequence
from torch import nn

TOKENS = (9, 24)


def _make(path: str, *args: Any, **kwargs: Any) -> nn.Module:
    module, _, name = path.partition(":")
    made: nn.Module = getattr(importlib.import_module(f"timm.{module}"), name)(*args, **kwargs)
    made.eval()  # some return nothing
    return made


MASK = torch.zeros(2, 9, 9).masked_fill(torch.arange(9) > 6, -100.0)
ROPE = torch.linspace(-1, 1, 8 * 12).view(8, 12)

# name → (shape of one input, further arguments, path, arguments)
TOYS: dict[str, tuple[tuple[int, ...], tuple[Any, ...], str, tuple[Any, ...], dict[str, Any]]] = {
    "eva": (TOKENS, (ROPE,), "models.eva:EvaAttention", (24, 4), {"norm_layer": nn.LayerNorm}),
    "eva separate": (TOKENS, (ROPE,), "models.eva:EvaAttention", (24, 4),
        {"norm_layer": nn.LayerNorm, "qkv_fused": False}),
    "rope": (TOKENS, (ROPE,), "layers:AttentionRope", (24, 4), {"qkv_fused": False, "num_kv_heads": 2}),
    "beit": ((10, 24), (), "models.beit:Attention", (24, 4), {"qkv_bias": True, "window_size": (3, 3)}),
    "swinv2": ((2, 9, 24), (MASK,), "models.swin_transformer_v2:WindowAttention", (24, (3, 3), 4), {}),
    "swinv2_cr": ((2, 9, 24), (MASK,), "models.swin_transformer_v2_cr:WindowMultiHeadAttention", (24, 4, (3, 3)), {}),
    "cait": (TOKENS, (), "models.cait:TalkingHeadAttn", (24, 4), {}),
    "cait class": (TOKENS, (), "models.cait:ClassAttn", (24, 4), {}),
    "mvitv2": ((17, 24), ([4, 4],), "models.mvitv2:MultiScaleAttention", (24, 32, (4, 4), 2),
               {"stride_q": (2, 2), "kernel_q": (3, 3), "kernel_kv": (3, 3)}),
    "levit": (TOKENS, (), "models.levit:Attention", (24, 8, 4), {"resolution": 3}),
    "levit conv": ((24, 3, 3), (), "models.levit:Attention", (24, 8, 4), {"resolution": 3, "use_conv": True}),
    "levit down": ((16, 24), (), "models.levit:AttentionDownsample", (24, 32, 8, 4), {"resolution": 4}),
    "levit conv down": ((24, 4, 4), (), "models.levit:AttentionDownsample", (24, 32, 8, 4),
        {"resolution": 4, "use_conv": True}),
    "xcit": (TOKENS, (), "models.xcit:XCA", (24, 4), {}),
    "xcit class": (TOKENS, (), "models.xcit:ClassAttn", (24, 4), {}),
    "pvt_v2": ((16, 24), ([4, 4],), "models.pvt_v2:Attention", (24, 4), {"sr_ratio": 2}),
    "twins local": ((30, 24), ((5, 6),), "models.twins:LocallyGroupedAttn", (24, 4), {"ws": 3}),
    "twins global": ((16, 24), ((4, 4),), "models.twins:GlobalSubSampleAttn", (24, 4), {"sr_ratio": 2}),
    "volo outlook": ((4, 4, 24), (), "models.volo:OutlookAttention", (24, 4), {"stride": 2}),
    "volo class": (TOKENS, (), "models.volo:ClassAttention", (24, 4), {}),
    "hiera": ((16, 24), (), "models.hiera:MaskUnitAttention", (24, 24, 2, 2, 4, True), {}),
    "maxvit cl": ((3, 3, 24), (), "models.maxxvit:AttentionCl", (24,), {"dim_head": 8}),
    "coatnet 2d": ((24, 3, 3), (), "models.maxxvit:Attention2d", (24,), {"dim_head": 8}),
    "tiny_vit": (TOKENS, (), "models.tiny_vit:Attention", (24, 8, 3), {"attn_ratio": 1, "resolution": (3, 3)}),
    "davit window": (TOKENS, (), "models.davit:WindowAttention", (24, (3, 3), 4), {}),
    "davit channel": (TOKENS, (), "models.davit:ChannelAttention", (24, 4), {}),
    "davit channel v2": (TOKENS, (), "models.davit:ChannelAttentionV2", (24, 4), {}),
    "parallel": (TOKENS, (), "models.vision_transformer:ParallelScalingBlock", (24, 4), {}),
    "efficientformer": (TOKENS, (), "models.efficientformer:Attention", (24, 8, 4), {"attn_ratio": 2, "resolution": 3}),
    "efficientformerv2": ((24, 3, 3), (), "models.efficientformer_v2:Attention2d", (24, 8, 4),
        {"attn_ratio": 2, "resolution": 3}),
    "efficientvit": ((16, 4, 4), (), "models.efficientvit_mit:LiteMLA", (16, 16), {}),
    "cascaded": ((16, 4, 4), (), "models.efficientvit_msra:CascadedGroupAttention", (16, 8, 2),
        {"attn_ratio": 1, "resolution": 4}),
    "edgenext": (TOKENS, (), "models.edgenext:CrossCovarianceAttn", (24, 4), {}),
    "nest": ((4, 9, 24), (), "models.nest:Attention", (24, 4), {}),
    "tnt": (TOKENS, (), "models.tnt:Attention", (24, 24, 4), {}),
    "convit": (TOKENS, (), "models.convit:GPSA", (24, 4), {}),
    "convit plain": (TOKENS, (), "models.convit:MHSA", (24, 4), {}),
    "visformer": ((24, 3, 3), (), "models.visformer:Attention", (24, 4), {}),
    "gcvit": ((4, 9, 24), (), "models.gcvit:WindowAttentionGlobal", (24, 4, (3, 3)), {"use_global": False}),
    "latent pool": (TOKENS, (), "layers:AttentionPoolLatent", (24,), {"num_heads": 4}),
    "rotary pool": ((24, 3, 3), (), "layers:RotAttentionPool2d", (24,), {"num_heads": 2, "ref_feat_size": 3}),
    "refining pool": (TOKENS, (), "layers:AttentionPoolPrr", (24, 4), {}),
    "multi-query": ((24, 4, 4), (), "layers.attention2d:MultiQueryAttention2d", (24,),
        {"num_heads": 4, "kv_stride": 2}),
    "multi-query einsum": ((24, 4, 4), (), "layers.attention2d:MultiQueryAttentionV2", (24,), {"num_heads": 4}),
    "bottleneck": ((24, 4, 4), (), "layers.bottleneck_attn:BottleneckAttn", (24,),
        {"feat_size": (4, 4), "num_heads": 2}),
    "halo": ((24, 8, 8), (), "layers.halo_attn:HaloAttn", (24,), {"num_heads": 2, "block_size": 4, "halo_size": 1}),
    "lambda": ((24, 4, 4), (), "layers.lambda_layer:LambdaLayer", (24,), {"feat_size": (4, 4), "num_heads": 2}),
    "differential": (TOKENS, (), "layers.diff_attention:DiffAttention", (24, 2), {}),
    "relpos": (TOKENS, (), "models.vision_transformer_relpos:RelPosAttention", (24, 4), {}),
    "metaformer": ((9, 24), (), "models.metaformer:Attention", (24,), {"head_dim": 8}),
    "crossvit": (TOKENS, (), "models.crossvit:CrossAttention", (24, 4), {}),
    "swiftformer": ((24, 3, 3), (), "models.swiftformer:EfficientAdditiveAttention", (24,), {}),
    "shvit": ((24, 3, 3), (), "models.shvit:SHSA", (24, 8, 12), {}),
    "fastvit": ((24, 3, 3), (), "models.fastvit:Attention", (24,), {"head_dim": 8}),
    "sam": ((3, 3, 24), (), "models.vision_transformer_sam:Attention", (24, 4),
        {"use_rel_pos": True, "input_size": (3, 3)}),
    "non-local": ((24, 3, 3), (), "layers.non_local_attn:NonLocalAttn", (24,), {}),
    "global context": ((24, 3, 3), (), "layers.global_context:GlobalContext", (24,), {}),
}  # fmt: skip


def toy(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A model whose module ``attn`` is the attention, with random parameters; and an input of it."""
    shape, more, path, args, kwargs = TOYS[name]
    torch.manual_seed(0)
    model = Sequence(_caller(more), attn=_make(path, *args, **kwargs))
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    windows = shape[0] if name.startswith(("swinv2", "gcvit")) else 0
    return model, torch.randn(*((1, *shape) if not windows else (windows, *shape[1:])))


def _caller(more: tuple[Any, ...]) -> Any:
    def call(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        out = model.attn(x, *more)  # type: ignore[operator]
        return out[0] if isinstance(out, tuple) else out

    return call
