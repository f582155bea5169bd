"""Protocol of a run in words, under the same names for every run, and its differences from a paper's protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qplug.analysis.compare.rows import ComparisonRow
from qplug.core.storage.hashing import content_key
from qplug.core.text import percent
from qplug.pipeline.read_run import Run

TRAININGS = {"finetune": "fine-tuned", "qat": "QAT"}
WIDTH_TOLERANCE = 0.5
"""Largest difference in mean bits at which a published figure belongs to a run."""


def protocol(run: Run) -> dict[str, str]:
    """Everything that a figure depends on, except bits and techniques."""
    recipe, metrics = run.recipe, run.metrics
    quantize, scope = recipe["quantize"], recipe["quantize"]["scope"]
    return {
        "weights": _tensors(quantize["weights"], run.lock.numbers.get("weights")),
        "activations": _tensors(quantize["activations"], run.lock.numbers.get("activations")),
        "exceptions": "; ".join(map(_override, quantize["overrides"])) or "none",
        "Softmax inputs": "quantized" if scope["softmax"] else "float",
        "LayerNorm inputs": "quantized" if scope["layernorm"] else "float",
        "MACs in float": _in_float(metrics["coverage.macs"]),
        "importance": recipe["calibration"]["loss"],
        "calibration images": str(metrics["images.calibration"]),
        "calibration data": _calibration(run),
        "evaluation images": str(metrics["images.evaluation"]),
        "backend": recipe["backend"],
        "computed by": _machine(run),
        **{title: _training(recipe[stage], metrics.get(f"{stage}.images")) for stage, title in _trained(run).items()},
    }


def _in_float(coverage: float | None) -> str:
    return "unknown" if coverage is None else percent(1 - coverage)


def _trained(run: Run) -> dict[str, str]:
    """Training stages of the run → their titles; empty for a run of an earlier version."""
    return {stage: title for stage, title in TRAININGS.items() if run.recipe.get(stage) is not None}


def _training(config: Mapping[str, Any], images: int | None) -> str:
    """Main options of a training. Differences in the other options appear in the names of the rows."""
    parts = [f"{config['epochs']} epochs of {images} images in batches of {config['batch_size']}"]
    parts += [f"{config['optimizer']} at {config['learning_rate']:g}"]
    parts += ["distilled"] if config["distill"] is not None else []
    parts += ["averaged"] if config["ema"] is not None else []
    return ", ".join(parts)


def _calibration(run: Run) -> str:
    """The source, and a digest of the images, which the seed chooses."""
    config = run.recipe["data"]["calibration"]
    words = [str(config.get("source", "")), str(config.get("split") or "")]
    digest = content_key(images=run.lock.hashes.calibration_images)[:8]
    return f"{' '.join(filter(None, words))}, {digest} at seed {run.recipe['seed']}"


def _machine(run: Run) -> str:
    """What the last bits of a result depend on: torch, and the kind of processor."""
    machine, torch = run.lock.machine, run.lock.packages.get("torch")
    device = machine.device.partition(":")[0]
    name = machine.device_name if device != "cpu" else machine.instructions
    return " ".join(filter(None, (f"torch {torch}" if torch else "", device, name)))


def _tensors(config: Mapping[str, Any], numbers: str | None = None) -> str:
    symmetry = "symmetric" if config["symmetric"] else "asymmetric"
    zero = " with a float zero point" if config.get("zero_point") == "float" else ""
    number_format = config.get("number_format", "int")
    more = ", ".join(filter(None, ("" if number_format == "int" else number_format, numbers)))
    return f"{config['granularity'].replace('_', ' ')}, {symmetry}{zero}" + (f", {more}" if more else "")


def _override(override: Mapping[str, Any]) -> str:
    if override["skip"]:
        return f"{override['match']} in float"
    parts = [f"{override['bits']} bits" if override["bits"] else "", (override["granularity"] or "").replace("_", " ")]
    parts.append(override.get("number_format") or "")
    if override["symmetric"] is not None:
        parts.append("symmetric" if override["symmetric"] else "asymmetric")
    return f"{override['match']} {', '.join(filter(None, parts))}"


@dataclass(frozen=True)
class PaperFigure:
    """Published figure for a row; top-1 in percent, ``None`` if the paper has none for this model and these bits."""

    title: str
    top1: float | None
    float_top1: float | None
    differences: dict[str, tuple[str, str]]
    """Name in the protocol → (value of the paper, value of the run), where they differ."""


def paper_figure(row: ComparisonRow) -> PaperFigure | None:
    """Figure of the recipe's paper for this model at these bits; ``None`` if the recipe names no paper."""
    paper = row.paper
    if not paper:
        return None
    candidates = [p for p in paper["published"] if p["model"] == row.model and _distance(row, p) <= WIDTH_TOLERANCE]
    best = min(candidates, key=lambda p: _distance(row, p), default=None)
    ours = protocol(row.runs[0])
    theirs = {name: str(value) for name, value in paper["protocol"].items()}
    differences = {name: (text, ours.get(name, "–")) for name, text in theirs.items() if text != ours.get(name)}
    top1, float_top1 = (best["top1"], best["float_top1"]) if best else (None, None)
    return PaperFigure(paper["title"], top1, float_top1, differences)


def _distance(row: ComparisonRow, published: Mapping[str, Any]) -> float:
    """Difference in mean bits between a row and a figure: the larger one of weights and activations."""
    sides = [(row.mean(f"bits.{side}_mean"), published[side]) for side in ("weights", "activations")]
    return max(abs(mean - bits) if mean is not None else math.inf for mean, bits in sides)
