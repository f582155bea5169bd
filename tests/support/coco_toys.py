"""Small data in COCO's layout, as a caller has it: images of colored rectangles, and their boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 1, "name": "red"}, {"id": 3, "name": "green"}, {"id": 7, "name": "blue"}]


def write_coco(folder: Path, count: int = 4, size: tuple[int, int] = (40, 60), seed: int = 0) -> dict[str, Any]:
    """``count`` images of (height, width), two rectangles each, and ``objects.json``; returns its content."""
    draw, (height, width) = np.random.default_rng(seed), size
    images, objects = [], []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = draw.integers(0, 60, (height, width, 3), dtype=np.uint8)
        for place in range(2):
            kind = int(draw.integers(3))
            x, y = int(draw.integers(0, width // 4)) + place * width // 2, int(draw.integers(0, height // 2))
            w, h = int(draw.integers(8, width // 4)), int(draw.integers(8, height // 2))
            pixels[y : y + h, x : x + w] = 0
            pixels[y : y + h, x : x + w, kind] = 250
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": index,
                    "category_id": CATEGORIES[kind]["id"],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [polygon],
                }
            )
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "height": height, "width": width})
    content = {"images": images, "annotations": objects, "categories": [dict(one) for one in CATEGORIES]}
    (folder / "objects.json").write_text(json.dumps(content))
    return content


def coco_config(folder: Path, **more: Any) -> dict[str, Any]:
    """The source's configuration for ``write_coco``'s folder."""
    return {"source": "coco", "path": str(folder / "images"), "annotations": str(folder / "objects.json"), **more}
