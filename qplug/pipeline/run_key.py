"""The key of a run, and ``lock.json``: versions, code, seed, hashes and machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from qplug.core.errors import InputError
from qplug.core.storage.hashing import content_key
from qplug.core.storage.run_folder import FORMAT
from qplug.core.version import __version__
from qplug.hooks.registry import Registry, component, installed
from qplug.pipeline.code_identity import PACKAGES, code_of, code_records, plugin_packages

if TYPE_CHECKING:
    from qplug.core.component import Config, DataSource
    from qplug.recipe import Recipe

WITHOUT_INFLUENCE = ("name", "paper")
"""Keys of a recipe that change no result."""
EVALUATION_SEED = 0
"""Chooses the evaluation images whatever the recipe's seed, so that runs of several seeds can be compared."""


def _parts(recipe: Recipe, registry: Registry) -> list[object]:
    """Everything that a run of ``recipe`` calls and that a plugin may define."""
    data = [config for _, config in _data(recipe)]
    return [
        *(component(registry.techniques, step) for step in recipe.techniques),
        component(registry.models, recipe.model),
        *(component(registry.datasets, config) for config in data),
        registry.backends[recipe.backend].path,
        *(adapter.build for adapter in registry.adapters),
        *(metric.compute for metric in registry.metrics.values()),
    ]


def parts_that_load(recipe: Recipe, registry: Registry, kinds: Iterable[str]) -> list[object]:
    """What makes the model of a run again: the code on which the outputs of a loaded run depend.

    Args:
        recipe: of the run.
        registry: of the installed plugins.
        kinds: of the plan's quantizers.
    """
    return [
        *(component(registry.techniques, step) for step in recipe.techniques),
        component(registry.models, recipe.model),
        registry.backends[recipe.backend].path,
        *(adapter.build for adapter in registry.adapters),
        *(registry.quantizers[kind] for kind in kinds if kind in registry.quantizers),
    ]


def _data(recipe: Recipe) -> list[tuple[str, Config]]:
    """The recipe's data sources by their role."""
    roles = ((role, getattr(recipe.data, role)) for role in ("calibration", "evaluation", "training"))
    return [(role, config) for role, config in roles if config is not None]


def run_key(recipe: Recipe, registry: Registry, device: str) -> str:
    """The key of a run: two runs with one key have the same results.

    It covers the recipe, the model's weights and the images (by content, not by path), the code, the versions of
    ``PACKAGES``, and the kind of device. Computing it does not import torch.

    Raises:
        InputError: something that the recipe names cannot be read, or code is not in files.
    """
    values = {key: value for key, value in recipe.dump().items() if key not in (*WITHOUT_INFLUENCE, "model")}
    data = values.pop("data")
    return content_key(
        recipe=values,
        model=component(registry.models, recipe.model).key(),
        sources={role: _source_key(role, component(registry.datasets, c), recipe.seed) for role, c in _data(recipe)},
        batch_size=data["batch_size"],
        code=code_of(_parts(recipe, registry)),
        packages=versions(),
        blocks=sorted(registry.blocks),
        device=device.partition(":")[0],
    )


def _source_key(role: str, source: DataSource, seed: int) -> dict[str, Any]:
    if role == "calibration":
        return source.calibration_key(seed)
    return source.key(EVALUATION_SEED if role == "evaluation" else seed)


def run_key_if_known(recipe: Recipe, registry: Registry, device: str) -> str | None:
    """``run_key``, or ``None`` if there is none: such a run is never reused for another."""
    with suppress(InputError):
        return run_key(recipe, registry, device)
    return None


def versions() -> dict[str, str | None]:
    """The version of each of ``PACKAGES``; ``None`` for one that is not installed."""
    return {name: _version(name) for name in PACKAGES}


def lock(
    recipe: Recipe,
    *,
    run_key: str | None,
    device: str,
    hashes: Mapping[str, Any],
    registry: Registry | None = None,
    kinds: Iterable[str] = (),
) -> dict[str, Any]:
    """The contents of ``lock.json``, without the digests of the folder's files, which ``RunFolder`` adds.

    Args:
        recipe: of the run.
        run_key: its key; ``None`` if the run may not be reused.
        device: of the run, as torch names it.
        hashes: SHA-256 sums, or lists of them, by name (``model``, ``calibration_images``, …).
        registry: the installed plugins unless given; broken ones are listed too.
        kinds: of the plan's quantizers.
    """
    registry = installed() if registry is None else registry
    return {
        "format": FORMAT,
        "qplug": __version__,
        "run_key": run_key,
        "seed": recipe.seed,
        "packages": versions(),
        "code": code_records(
            _parts(recipe, registry), parts_that_load(recipe, registry, kinds), plugin_packages(registry)
        ),
        "plugins": {
            plugin.name: {"distribution": plugin.distribution, "version": plugin.version, "loaded": not plugin.error}
            for plugin in registry.plugins
        },
        "hashes": dict(hashes),
        "machine": machine(device),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def machine(device: str) -> dict[str, Any]:
    """Where a run is computed, as ``lock.json`` has it."""
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processor = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    name = torch.cuda.get_device_name(torch.device(device)) if torch.device(device).type == "cuda" else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "cpus_usable": usable,
        "torch_threads": torch.get_num_threads(),
        "device": device,
        "device_name": name,
    }
