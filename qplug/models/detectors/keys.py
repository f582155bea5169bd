"""Names of MMDetection's checkpoints → names of these detectors: the table ``ROWS``, and its reader ``translate``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


def merging_order(tensor: Tensor) -> Tensor:
    """(…, 4C) of MMDetection 2.12 and later, in the order (channel, row, column) → (column, row, channel) of timm.

    These versions merge 2×2 patches by ``nn.Unfold``. Swin's own code, and versions before, concatenate patches.
    """
    patches = tensor.reshape(*tensor.shape[:-1], -1, 2, 2)
    return patches.movedim((-3, -2, -1), (-1, -2, -3)).flatten(-3)


def background_first(tensor: Tensor) -> Tensor:
    """(classes + 1, …) with the background last → with the background first."""
    return tensor.roll(1, 0)


@dataclass(frozen=True)
class Row:
    """Names that match ``theirs`` become ``ours``; ``change`` is made to the tensor.

    ``{i}``, ``{j}`` and ``{p}`` stand for numbers and for the rest of a name: ``weight``, ``bias``, ….
    """

    theirs: str
    ours: str
    change: Callable[[Tensor], Tensor] | None = None

    def match(self, name: str) -> str | None:
        """The new name; ``None`` if the row is of other names."""
        pattern = re.escape(self.theirs)
        for field, values in (("i", r"\d+"), ("j", r"\d+"), ("p", r"[a-z_]+")):
            pattern = pattern.replace(rf"\{{{field}\}}", f"(?P<{field}>{values})", 1)
        found = re.fullmatch(pattern, name)
        if found is None:
            return None
        groups = found.groupdict()
        return self.ours.format(**groups, next=int(groups["i"]) + 1 if "i" in groups else 0)


_BLOCK = ("backbone.stages.{i}.blocks.{j}.", "backbone.body.layers_{i}.blocks.{j}.")
_TABLE = "relative_position_bias_table"
_OLD = "backbone.layers.{i}.blocks.{j}."
_MERGE = "backbone.body.layers_{next}.downsample."
_BOX, _BOXES = ("roi_head.bbox_head.", "roi_heads.box_"), ("roi_head.bbox_head.{i}.", "roi_heads.box_")
_MASK, _MASKS = ("roi_head.mask_head.", "roi_heads.mask_"), ("roi_head.mask_head.{i}.", "roi_heads.mask_")

ROWS: tuple[Row, ...] = (
    Row("backbone.patch_embed.projection.{p}", "backbone.body.patch_embed.proj.{p}"),
    Row("backbone.patch_embed.proj.{p}", "backbone.body.patch_embed.proj.{p}"),
    Row("backbone.patch_embed.norm.{p}", "backbone.body.patch_embed.norm.{p}"),
    # Swin of MMDetection 2.12 and later
    Row(_BLOCK[0] + "norm1.{p}", _BLOCK[1] + "norm1.{p}"),
    Row(_BLOCK[0] + "norm2.{p}", _BLOCK[1] + "norm2.{p}"),
    Row(_BLOCK[0] + "attn.w_msa." + _TABLE, _BLOCK[1] + "attn." + _TABLE),
    Row(_BLOCK[0] + "attn.w_msa.qkv.{p}", _BLOCK[1] + "attn.qkv.{p}"),
    Row(_BLOCK[0] + "attn.w_msa.proj.{p}", _BLOCK[1] + "attn.proj.{p}"),
    Row(_BLOCK[0] + "ffn.layers.0.0.{p}", _BLOCK[1] + "mlp.fc1.{p}"),
    Row(_BLOCK[0] + "ffn.layers.1.{p}", _BLOCK[1] + "mlp.fc2.{p}"),
    Row("backbone.stages.{i}.downsample.norm.{p}", _MERGE + "norm.{p}", merging_order),
    Row("backbone.stages.{i}.downsample.reduction.{p}", _MERGE + "reduction.{p}", merging_order),
    # Swin of Swin-Transformer-Object-Detection, the code of Swin's authors
    Row(_OLD + "norm1.{p}", _BLOCK[1] + "norm1.{p}"),
    Row(_OLD + "norm2.{p}", _BLOCK[1] + "norm2.{p}"),
    Row(_OLD + "attn." + _TABLE, _BLOCK[1] + "attn." + _TABLE),
    Row(_OLD + "attn.qkv.{p}", _BLOCK[1] + "attn.qkv.{p}"),
    Row(_OLD + "attn.proj.{p}", _BLOCK[1] + "attn.proj.{p}"),
    Row(_OLD + "mlp.fc1.{p}", _BLOCK[1] + "mlp.fc1.{p}"),
    Row(_OLD + "mlp.fc2.{p}", _BLOCK[1] + "mlp.fc2.{p}"),
    Row("backbone.layers.{i}.downsample.norm.{p}", _MERGE + "norm.{p}"),
    Row("backbone.layers.{i}.downsample.reduction.{p}", _MERGE + "reduction.{p}"),
    # the rest is the same in both
    Row("backbone.norm{i}.{p}", "backbone.norms.{i}.{p}"),
    Row("neck.lateral_convs.{i}.conv.{p}", "backbone.fpn.inner_blocks.{i}.0.{p}"),
    Row("neck.fpn_convs.{i}.conv.{p}", "backbone.fpn.layer_blocks.{i}.0.{p}"),
    Row("rpn_head.rpn_conv.{p}", "rpn.head.conv.0.0.{p}"),
    Row("rpn_head.rpn_cls.{p}", "rpn.head.cls_logits.{p}"),
    Row("rpn_head.rpn_reg.{p}", "rpn.head.bbox_pred.{p}"),
    # Mask R-CNN's heads
    Row(_BOX[0] + "shared_fcs.0.{p}", _BOX[1] + "head.fc6.{p}"),
    Row(_BOX[0] + "shared_fcs.1.{p}", _BOX[1] + "head.fc7.{p}"),
    Row(_BOX[0] + "fc_cls.{p}", _BOX[1] + "predictor.cls_score.{p}", background_first),
    Row(_BOX[0] + "fc_reg.{p}", _BOX[1] + "predictor.bbox_pred.{p}"),
    Row(_MASK[0] + "convs.{i}.conv.{p}", _MASK[1] + "head.{i}.0.{p}"),
    Row(_MASK[0] + "upsample.{p}", _MASK[1] + "predictor.conv5_mask.{p}"),
    Row(_MASK[0] + "conv_logits.{p}", _MASK[1] + "predictor.mask_fcn_logits.{p}"),
    # Cascade Mask R-CNN's heads
    Row(_BOXES[0] + "shared_convs.{j}.conv.{p}", _BOXES[1] + "head.{i}.{j}.0.{p}"),
    Row(_BOXES[0] + "shared_convs.{j}.bn.{p}", _BOXES[1] + "head.{i}.{j}.1.{p}"),
    Row(_BOXES[0] + "shared_fcs.0.{p}", _BOXES[1] + "head.{i}.5.{p}"),
    Row(_BOXES[0] + "fc_cls.{p}", _BOXES[1] + "predictor.{i}.cls_score.{p}", background_first),
    Row(_BOXES[0] + "fc_reg.{p}", _BOXES[1] + "predictor.{i}.bbox_pred.{p}"),
    Row(_MASKS[0] + "convs.{j}.conv.{p}", _MASKS[1] + "head.{i}.{j}.0.{p}"),
    Row(_MASKS[0] + "upsample.{p}", _MASKS[1] + "predictor.{i}.conv5_mask.{p}"),
    Row(_MASKS[0] + "conv_logits.{p}", _MASKS[1] + "predictor.{i}.mask_fcn_logits.{p}"),
)
"""The table. A name of a checkpoint matches one row, or none."""
TWO_LINEAR = (
    Row(_BOXES[0] + "shared_fcs.0.{p}", _BOXES[1] + "head.{i}.fc6.{p}"),
    Row(_BOXES[0] + "shared_fcs.1.{p}", _BOXES[1] + "head.{i}.fc7.{p}"),
)
"""Rows that go before the others where a box head of a cascade has no convolutions."""
COMPUTED = ("relative_position_index", "attn_mask")
"""Last names of tensors that a model computes, and that are left out."""


def is_mmdetection(names: Iterable[str]) -> bool:
    """Whether a checkpoint with these names is MMDetection's."""
    return any(name.startswith(("roi_head.", "rpn_head.", "neck.")) for name in names)


def translate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under our names; a name that no row matches stays as it is."""
    convolutional = any(".shared_convs." in name for name in state)
    rows = ROWS if convolutional else (*TWO_LINEAR, *ROWS)
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.rpartition(".")[2] in COMPUTED:
            continue
        row, ours = next(((row, new) for row in rows if (new := row.match(name)) is not None), (None, name))
        with torch.no_grad():
            result[ours] = row.change(tensor) if row is not None and row.change is not None else tensor
    return result
