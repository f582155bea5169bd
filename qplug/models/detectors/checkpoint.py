"""Loading of MMDetection's checkpoints, and of our own, into detectors."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from qplug.core.errors import InputError
from qplug.models import checkpoint
from qplug.models.detectors.build import MaskRCNN
from qplug.models.detectors.keys import is_mmdetection, translate

NOTE = "the checkpoint's names are MMDetection's, and were translated by the table of qplug.models.detectors.keys"
SCORES = ("roi_heads.box_predictor.cls_score.bias", "roi_heads.box_predictor.0.cls_score.bias")


def load(module: MaskRCNN, path: Path, name: str) -> str:
    """Load ``path`` into ``module``, all tensors or none; returns a note on what was chosen.

    Raises:
        InputError: as ``qplug.models.checkpoint.load``, or the checkpoint has another number of classes.
    """

    def convert(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
        translated = is_mmdetection(state)
        state = translate(state) if translated else state
        _check_classes(state, module.architecture.classes, path)
        return state, NOTE if translated else ""

    return checkpoint.load(module, path, name, convert=convert)


def _check_classes(state: dict[str, Tensor], classes: int, path: Path) -> None:
    given = next((len(state[score]) - 1 for score in SCORES if score in state), classes)
    if given != classes:
        raise InputError(
            f"the checkpoint detects {given} classes, and the model {classes}",
            where=str(path),
            fix=f"set model.classes: {given}",
        )
