"""What a run depended on beyond its recipe: versions, seed, hashes, machine. Written as ``lock.json``."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from qplug import __version__
from qplug.record import FORMAT
from qplug.registry import Registry, installed

PACKAGES = ("torch", "torchvision", "timm", "brevitas", "pydantic", "pluggy", "safetensors")


def lock(*, seed: int, device: str, hashes: Mapping[str, Any], registry: Registry | None = None) -> dict[str, Any]:
    """The contents of ``lock.json``.

    Args:
        seed: the recipe's seed.
        device: what the run was executed on, as torch names it.
        hashes: SHA-256 sums by what they are of (``checkpoint``, ``calibration_images``, …), or lists of them.
        registry: what is installed, unless given; all its plugins are written down, those that failed too.
    """
    registry = installed() if registry is None else registry
    return {
        "format": FORMAT,
        "qplug": __version__,
        "seed": seed,
        "packages": {name: _version(name) for name in PACKAGES},
        "plugins": {
            plugin.name: {"distribution": plugin.distribution, "version": plugin.version, "loaded": not plugin.error}
            for plugin in registry.plugins
        },
        "hashes": dict(hashes),
        "machine": _machine(device),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _machine(device: str) -> dict[str, Any]:
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = torch.cuda.get_device_name(torch.device(device)) if torch.device(device).type == "cuda" else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "cpus_usable": usable,
        "torch_threads": torch.get_num_threads(),
        "device": device,
        "device_name": name,
    }
