"""Smooth: move range from norms into the linears that read them; the model computes the same function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torch import nn

from qplug.core.errors import PluginError
from qplug.core.types import Change, QuantSpec
from qplug.models.smoothing import fold
from qplug.pipeline.context import RunContext
from qplug.pipeline.plugin_calibration import PluginCalibration
from qplug.pipeline.results import Inputs, PreparedSites, RewrittenModel

if TYPE_CHECKING:
    from qplug.core.component import Technique
    from qplug.hooks.caller import TechniqueCaller
    from qplug.models.equivalence import EquivalenceCheck
    from qplug.quantization.calibration.calibrator import Calibration
    from qplug.quantization.sites import SiteMap


def smooth(
    ctx: RunContext, inputs: Inputs, model: RewrittenModel, sites: PreparedSites, statistics: Calibration
) -> None:
    """Smooth the model and its statistics in place. Techniques with a calibration of their own run it before.

    Raises:
        EquivalenceError: the model's output moved by more than 1e-4 of its norm.
        PluginError: a shift or scale that cannot be folded.
    """
    assert model.equivalence is not None
    with ctx.stage("smoothing"):
        plugins = PluginCalibration(ctx.caller, model.module, inputs.images, sites.asked)
        model.changes += smooth_groups(
            model.module, ctx.caller, statistics, sites.site_map, sites.specs, model.equivalence, plugins.run
        )
        plugins.run_rest()


def smooth_groups(
    model: nn.Module,
    caller: TechniqueCaller,
    statistics: Calibration,
    site_map: SiteMap,
    specs: Mapping[str, QuantSpec],
    equivalence: EquivalenceCheck,
    before: Callable[[Technique], None] | None = None,
) -> list[Change]:
    """Let each technique in turn smooth every group, and check that the model's function stays the same.

    ``before`` is called with each technique before its turn.

    Raises:
        EquivalenceError: the model's output moved by more than 1e-4.
        PluginError: a shift or scale that cannot be folded.
    """
    inputs = {site.module: site for site in site_map.sites if site.role == "input"}
    changes: list[Change] = []
    for technique, hook in caller.each_technique("qplug_smooth"):
        own: list[Change] = []
        if before is not None:
            before(technique)
        for group in site_map.norm_groups(model, specs):
            stats = statistics.stats(inputs[group.linears[0]])
            smoothing = caller.call(technique, hook, "qplug_smooth", group=group, stats=stats)
            if smoothing is None:
                continue
            try:
                fold(model, group, smoothing)
            except PluginError as error:
                error.where = caller.where(technique, "qplug_smooth", group.norm)
                raise
            statistics.smooth(group.linears, smoothing)
            own.append(Change(group.norm, technique.name(), True, smoothing.reason))
        equivalence.check(own)
        changes += own
    return changes
