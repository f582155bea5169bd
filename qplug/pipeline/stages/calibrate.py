"""Calibrate: collect statistics of every watched site."""

from __future__ import annotations

from qplug.core.text import listed
from qplug.pipeline.context import RunContext
from qplug.pipeline.results import Inputs, PreparedSites, RewrittenModel
from qplug.quantization.calibration.calibrator import Calibration
from qplug.quantization.calibration.gradients import CAUSES


def calibrate(ctx: RunContext, inputs: Inputs, model: RewrittenModel, sites: PreparedSites, loss: str) -> Calibration:
    """Statistics over the calibration data, with gradients of ``loss`` where a technique needs them.

    Raises:
        InputError: an activation is not finite, or a module is not called.
    """
    stream = inputs.images
    count = len(stream.examples)
    with ctx.stage("statistics", count) as advance:
        statistics = Calibration(model.module, sites.watched, count, ctx.seed, task=inputs.float_model.task)
        wanted = loss if ctx.caller.need_gradients() else "none"
        ctx.results.collect(statistics, stream.once(), wanted, advance, (stream.examples, stream.preprocessing))
        sites.calls.update({name: min(count, sites.calls[name]) for name, count in statistics.calls().items()})
    if wanted != "none" and (alike := statistics.without_gradient()):
        ctx.warnings.append(
            f"no gradient of calibration.loss {loss} reaches {listed(alike, 5)}: every output counts alike there "
            f"({CAUSES})"
        )
    return statistics
