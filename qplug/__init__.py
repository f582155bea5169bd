"""qplug: a plugin framework for quantizing vision models.

The public names are those below. They are imported when first used, so that ``import qplug`` is light and a plugin can
be discovered without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qplug.core.component import Config, DataSource, ModelSource, Technique
    from qplug.core.device import full_float32
    from qplug.core.errors import GuardError, InputError, ParityError, PluginError, QplugError, RecipeError
    from qplug.core.types import (
        Adapter,
        BackendOffer,
        Choice,
        Event,
        Extra,
        Granularity,
        LossName,
        Metric,
        NormGroup,
        QuantSpec,
        Rewrite,
        Site,
        SiteKind,
        Smoothing,
        matches,
    )
    from qplug.export.run import Export, export_run
    from qplug.hooks import hookimpl
    from qplug.load import load_quantized
    from qplug.models.tracing import is_gelu
    from qplug.pipeline import RunResult, run
    from qplug.quantization.bit_allocation import Limit, choose_bits
    from qplug.quantization.calibration.hessian import Trace, hessian_traces
    from qplug.quantization.calibration.statistics import SiteStats
    from qplug.quantization.plan import Plan
    from qplug.quantization.quantizers import LogQuantizer, Quantizer, Region, RegionQuantizer, UniformQuantizer
    from qplug.quantization.quantizers.grid import evenly, grid_search
    from qplug.quantization.quantizers.search import line_search
    from qplug.quantization.sqnr_table import SqnrTable
    from qplug.recipe import Recipe, load_recipe
    from qplug.training.learners import (
        LearnedStep,
        Learner,
        bit_penalty,
        learned_steps,
        rectified_sigmoid,
        soft_bit_logits,
    )
    from qplug.training.reconstruction import Block, OutputLoss, Rate, Reconstruction, Unit
    from qplug.training.reconstruction.schedule import Schedule

_PUBLIC = {
    "qplug.quantization.bit_allocation": ("Limit", "choose_bits"),
    "qplug.core.errors": ("GuardError", "InputError", "ParityError", "PluginError", "QplugError", "RecipeError"),
    "qplug.export.run": ("Export", "export_run"),
    "qplug.hooks": ("hookimpl",),
    "qplug.load": ("load_quantized",),
    "qplug.models.tracing": ("is_gelu",),
    "qplug.pipeline": ("RunResult", "run"),
    "qplug.quantization.plan": ("Plan",),
    "qplug.quantization.quantizers": ("LogQuantizer", "Quantizer", "Region", "RegionQuantizer", "UniformQuantizer"),
    "qplug.quantization.quantizers.grid": ("evenly", "grid_search"),
    "qplug.training.learners": (
        *("LearnedStep", "Learner", "bit_penalty", "learned_steps", "rectified_sigmoid", "soft_bit_logits"),
    ),
    "qplug.quantization.quantizers.search": ("line_search",),
    "qplug.recipe": ("Recipe", "load_recipe"),
    "qplug.training.reconstruction": ("Block", "OutputLoss", "Rate", "Reconstruction", "Unit"),
    "qplug.core.device": ("full_float32",),
    "qplug.training.reconstruction.schedule": ("Schedule",),
    "qplug.sensitivity": ("SqnrTable",),
    "qplug.quantization.calibration.hessian": ("Trace", "hessian_traces"),
    "qplug.quantization.calibration.statistics": ("SiteStats",),
    "qplug.core.component": ("Config", "DataSource", "ModelSource", "Technique"),
    "qplug.core.types": (
        *("Adapter", "BackendOffer", "Choice", "Event", "Extra", "Granularity", "LossName", "Metric", "NormGroup"),
        *("QuantSpec", "Rewrite", "Site", "SiteKind", "Smoothing", "matches"),
    ),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "Adapter",
    "BackendOffer",
    "Block",
    "Choice",
    "Config",
    "DataSource",
    "Event",
    "Export",
    "Extra",
    "Granularity",
    "GuardError",
    "InputError",
    "LearnedStep",
    "Learner",
    "Limit",
    "LogQuantizer",
    "LossName",
    "Metric",
    "ModelSource",
    "NormGroup",
    "OutputLoss",
    "ParityError",
    "Plan",
    "PluginError",
    "QplugError",
    "QuantSpec",
    "Quantizer",
    "Rate",
    "Recipe",
    "RecipeError",
    "Reconstruction",
    "Region",
    "RegionQuantizer",
    "Rewrite",
    "RunResult",
    "Schedule",
    "Site",
    "SiteKind",
    "SiteStats",
    "Smoothing",
    "SqnrTable",
    "Technique",
    "Trace",
    "UniformQuantizer",
    "Unit",
    "__version__",
    "bit_penalty",
    "choose_bits",
    "evenly",
    "export_run",
    "full_float32",
    "grid_search",
    "hessian_traces",
    "hookimpl",
    "is_gelu",
    "learned_steps",
    "line_search",
    "load_quantized",
    "load_recipe",
    "matches",
    "rectified_sigmoid",
    "run",
    "soft_bit_logits",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'qplug' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
