"""Run folders without a run: what a comparison reads, with any figures in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from qplug.core.storage.hashing import sha256
from qplug.core.storage.run_folder import FORMAT, RunFolder
from qplug.core.storage.run_schema import digest_of

TEXT = """
version: 1
model: {source: zoo, name: vit_digits}
data:
  calibration: {source: digits, split: train, images: 32}
  evaluation: {source: digits, split: test, images: 64}
quantize: {weights: {bits: 4}, activations: {bits: 4}}
techniques: [{use: baseline.minmax}]
"""


SOURCE = {"source": "digits"}


def resolved(name: str = "a", seed: int = 0, bits: int = 4, **more: Any) -> dict[str, Any]:
    """A recipe as a run folder has it."""
    side = {"bits": bits, "granularity": "per_tensor", "symmetric": True}
    return {
        "version": 1,
        "name": name,
        "paper": None,
        "seed": seed,
        "model": {"source": "timm", "name": "deit_tiny"},
        "data": {"batch_size": 32},
        "calibration": {"loss": "kl"},
        "backend": "brevitas",
        "quantize": {
            "weights": side | {"granularity": "per_channel"},
            "activations": side | {"zero_point": "integer"},
            "overrides": [{"match": "patch*", "bits": 8, "granularity": None, "symmetric": None, "skip": False}],
            "scope": {"softmax": False, "layernorm": False},
        },
        "techniques": [{"use": f"toy.{name}"}],
        **more,
    }


def decision(name: str, bits: int = 4, scale: float | list[float] = 0.5, **more: Any) -> dict[str, Any]:
    """One decision of a plan."""
    quantizer = {"kind": "uniform", "bits": bits, "signed": True, "scale": scale, "zero_point": None}
    module = name.rpartition(".")[0]
    place = {"name": name, "module": module, "role": "weight", "shape": [4, 4], "macs": 16}
    site = {**place, "kind": "linear_weight", "channel_axis": 0, "head_axis": None, "source": None}
    spec = {"bits": bits, "granularity": "per_channel", "symmetric": True, "zero_point": "integer"}
    about = {"technique": "toy.minmax", "reason": "min-max", "bits_by": "recipe"}
    return {"site": site, "spec": {**spec, "number_format": "int"}, "quantizer": quantizer, **about, **more}


def write_run(
    folder: Path,
    recipe: dict[str, Any] | None = None,
    right: np.ndarray | float = 0.5,
    images: int = 40,
    model: str = "m",
    evaluation: str = "e",
    content: str | None = None,
    lock: dict[str, Any] | None = None,
    decisions: list[dict[str, Any]] | None = None,
    changes: list[dict[str, Any]] | None = None,
    scores: Any = None,
    **metrics: Any,
) -> Path:
    """Write a run folder; ``right`` is which images were right, or the share of them that was.

    ``scores`` (images,) takes its place for a task whose predictions are not right or wrong.
    """
    import torch

    recipe = recipe or resolved()
    recipe = {**recipe, "data": {"calibration": SOURCE, "evaluation": SOURCE, **recipe["data"]}}
    chosen = np.arange(images) < right * images if isinstance(right, float) else np.asarray(right)
    labels = torch.arange(len(chosen), dtype=torch.int32) % 5
    quantized = torch.where(torch.tensor(chosen), labels, labels + 1).int()
    bits = float(recipe["quantize"]["weights"]["bits"])
    with RunFolder(folder) as run:
        run.write_text("recipe.yaml", json.dumps(recipe))  # JSON is YAML
        known = {"format": FORMAT, "qplug": "0", "run_key": content or folder.name, "seed": recipe["seed"]}
        hashes = {"model": model, "evaluation_images": evaluation, "calibration_images": []}
        more = {"packages": {}, "code": {}, "machine": {"device": "cpu"}, **(lock or {})}
        more["code"] = {package: {"digest": digest} for package, digest in more["code"].items()}
        run.write_lock({**known, "hashes": hashes, **more})
        rest = {"float_sites": {}, "float_macs": {}, "total_macs": 16, "unknown": {}, "calls": {}}
        run.write_json("plan.json", {"format": 1, "decisions": decisions or [], "changes": changes or [], **rest})
        run.write_json(
            "metrics.json",
            {
                "quantized.top1": float(chosen.mean()),
                "quantized.agreement": 0.9,
                "quantized.logit_sqnr_db": 7.5,
                "float.top1": 0.8,
                "float.size_mb": 22.9,
                "float.bops_g": 1290.0,
                "size_mb": 3.0,
                "bops_g": 20.5,
                "bops_convention": "full",
                "bits.weights_mean": bits,
                "bits.activations_mean": bits,
                "coverage.macs": 1.0,
                "images.calibration": 32,
                "images.evaluation": len(chosen),
                "seconds.total": 12.0,
                "peak_memory_mb": 900.0,
                **metrics,
            },
        )
        rows = {"labels": labels, "float.top1": labels, "quantized.top1": quantized}
        run.write_tensors("evaluation.safetensors", rows if scores is None else {"quantized.by_example": scores})
        run.write_tensors("model.safetensors", {})
    return folder


def relocked(folder: Path, **changes: Any) -> None:
    """Write ``lock.json`` anew, as if the present files were those of the run; ``changes`` replace its values."""
    lock = {**json.loads((folder / "lock.json").read_text()), **changes}
    files = [path for path in sorted(folder.iterdir()) if path.name != "lock.json" and path.is_file()]
    records = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p.read_bytes())} for p in files}
    lock["files"] = {**{name: {"bytes": 0, "sha256": ""} for name in lock["files"]}, **records}
    (folder / "lock.json").write_text(json.dumps({**lock, "digest": digest_of(lock)}))
