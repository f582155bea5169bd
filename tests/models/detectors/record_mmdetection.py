"""Record what MMDetection 3.3.0 computes for small detectors: writes ``mmdetection.json``, which tests compare with.

No test runs this. It needs an environment of its own, because MMDetection is not maintained::

    pip install --no-deps mmdet==3.3.0 mmengine==0.10.7 mmcv-lite==2.1.0
    pip install addict yapf termcolor terminaltables opencv-python-headless shapely pycocotools
    PYTHONPATH=tests/support python tests/models/detectors/record_mmdetection.py

mmcv-lite has no compiled operators. Two are needed, and torchvision's take their place: ``nms`` and ``roi_align``.
"""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
import torchvision
from detector_toys import IMAGES, KINDS, SIZES, SWIN, images, weights

MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
FIRST = 40
"""Detections of an image whose boxes are recorded."""


class Operators(ModuleType):
    """``mmcv._ext``: two operators, and names for the others."""

    __spec__ = ModuleSpec("mmcv._ext", None)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

    def nms(self, boxes, scores, iou_threshold, offset):
        assert offset == 0
        return torchvision.ops.nms(boxes, scores, iou_threshold)

    def roi_align_forward(self, maps, rois, output, _, __, **given):
        size = given["aligned_height"], given["aligned_width"]
        assert given["pool_mode"] == 1
        rest = (given["spatial_scale"], given["sampling_ratio"], given["aligned"])
        output.copy_(torchvision.ops.roi_align(maps, rois, size, *rest))


def build(kind):
    """MMDetection's own configuration, with the sizes of the toys."""
    import mmdet
    from mmdet.registry import MODELS
    from mmengine.config import Config

    cascade = KINDS[kind].get("cascade", False)
    base = "cascade-mask-rcnn_r50_fpn" if cascade else "mask-rcnn_r50_fpn"
    config = Config.fromfile(f"{Path(mmdet.__file__).parent}/.mim/configs/_base_/models/{base}.py").model
    channels, swin = SIZES["channels"], {key: value for key, value in SWIN.items() if key != "embed_dim"}
    config.backbone = dict(type="SwinTransformer", embed_dims=SWIN["embed_dim"], drop_path_rate=0.0, **swin)
    config.neck.update(in_channels=[SWIN["embed_dim"] * 2**i for i in range(4)], out_channels=channels)
    config.test_cfg.rpn.update(nms_pre=SIZES["proposals"], max_per_img=SIZES["proposals"])
    config.rpn_head.update(in_channels=channels, feat_channels=channels)
    heads = config.roi_head
    for part in (heads.bbox_roi_extractor, heads.mask_roi_extractor):
        part.out_channels = channels
    heads.mask_head.update(in_channels=channels, conv_out_channels=channels, num_classes=SIZES["classes"])
    for head in heads.bbox_head if cascade else [heads.bbox_head]:
        head.update(in_channels=channels, fc_out_channels=SIZES["hidden"], num_classes=SIZES["classes"])
        head.reg_class_agnostic = KINDS[kind].get("agnostic", False)
        if KINDS[kind].get("convolutions"):
            head.update(type="ConvFCBBoxHead", num_shared_convs=4, num_shared_fcs=1, conv_out_channels=channels)
            head.norm_cfg = {"type": "BN"}
    return MODELS.build(config).eval().double()


def inputs():
    """The batch after MMDetection's pipeline without 8-bit rounding, and what that tells of each image."""
    resized, told = [], []
    for image, (height, width) in zip(images(), IMAGES, strict=True):
        factor = min(SIZES["short"] / min(height, width), SIZES["long"] / max(height, width))
        size = int(height * factor + 0.5), int(width * factor + 0.5)
        normal = (image * 255 - MEAN.double().view(3, 1, 1)) / STD.double().view(3, 1, 1)
        resized.append(F.interpolate(normal[None], size, mode="bilinear")[0])
        scale = size[1] / width, size[0] / height
        told.append({"img_shape": size, "ori_shape": (height, width), "scale_factor": scale})
    rows, columns = (-(-max(one["img_shape"][axis] for one in told) // 32) * 32 for axis in (0, 1))
    batch = [F.pad(one, (0, columns - one.shape[2], 0, rows - one.shape[1])) for one in resized]
    return torch.stack(batch), [{**one, "batch_input_shape": (rows, columns)} for one in told]


def rounded(tensor, digits):
    """JSON numbers."""
    return [[round(x, digits) for x in row] if isinstance(row, list) else round(row, digits) for row in tensor.tolist()]


def record(kind):
    """Names and shapes of the state, values of the feature maps, and the detections."""
    from mmdet.structures import DetDataSample

    model = build(kind)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    own = {name: tensor for name, tensor in model.state_dict().items() if name.endswith("relative_position_index")}
    model.load_state_dict({**weights(shapes, kind), **own})
    batch, told = inputs()
    samples = [DetDataSample(metainfo=one) for one in told]
    with torch.no_grad():
        maps = model.extract_feat(batch)
        found = [sample.pred_instances for sample in model.predict(batch, samples, rescale=True)]
    detections = [
        {
            "count": len(one),
            "boxes": rounded(one.bboxes[:FIRST], 6),
            "scores": rounded(one.scores[:FIRST], 9),
            "labels": one.labels[:FIRST].tolist(),
            "areas": one.masks[:FIRST].flatten(1).sum(1).tolist(),
        }
        for one in found
    ]
    places = [[round(float(level[image, 3, -1, 1]), 9) for level in maps] for image in range(2)]
    return {"shapes": shapes, "maps": places, "detections": detections}


def main():
    """Write the file."""
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    sample = F.grid_sample
    F.grid_sample = lambda masks, grid, **options: sample(
        masks.to(grid.dtype), grid, **options
    )  # masks are cast to float32
    recorded = {kind: record(kind) for kind in KINDS}
    path = Path(__file__).with_name("mmdetection.json")
    path.write_text(json.dumps(recorded, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    sys.modules["mmcv._ext"] = Operators("mmcv._ext")
    main()
