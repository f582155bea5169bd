"""The core's plugin: what it offers, through the hooks of a third party, without importing torch."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

from qplug.core.task import TASKS
from qplug.hooks.registry import build


def test_it_offers_its_sources() -> None:
    registry = build([EntryPoint("core", "qplug.hooks.builtin", "qplug")])
    assert not registry.broken()
    models = ["detector", "import", "memory", "timm", "transformers", "transformers_vision", "zoo"]
    assert sorted(registry.models) == models
    datasets = ["coco", "digits", "folder", "hf", "masks", "memory", "shapes_detection", "text"]
    assert sorted(registry.datasets) == datasets
    assert sorted(registry.quantizers) == ["log", "regions", "uniform"]
    assert list(registry.tasks) == sorted(TASKS)
    assert list(registry.backends) == ["brevitas", "modelopt"]
    assert "timm.models.vision_transformer:Block" in registry.blocks


def test_it_imports_nothing_heavy() -> None:
    heavy = (
        "torch",
        "timm",
        "numpy",
        "sklearn",
        "brevitas",
        "modelopt",
        "PIL",
        "datasets",
        "pyarrow",
        "transformers",
        "tokenizers",
    )
    code = f"import sys, qplug.hooks.builtin; print([name for name in {heavy} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
