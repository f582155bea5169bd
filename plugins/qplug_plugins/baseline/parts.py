"""The quantizers that several baselines share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from qplug import Config, QuantizerChoice, QuantSpec

if TYPE_CHECKING:
    from qplug import SiteStats


def min_max(spec: QuantSpec, stats: SiteStats, reason: str) -> QuantizerChoice:
    """The quantizer whose grid just holds the range over all images."""
    from qplug import make_quantizer

    return QuantizerChoice(make_quantizer(spec, *stats.range(spec.granularity)), reason)


def narrowed(
    spec: QuantSpec, stats: SiteStats, config: Config, objective: Literal["output", "value"], reason: str
) -> QuantizerChoice:
    """The factor of the min-max range with the least error, by ``qplug.line_search``.

    Args:
        spec, stats: of the site.
        config: ``use`` and the arguments of the search.
        objective: the error to minimize.
        reason: what the factor was chosen by, for the plan.
    """
    from qplug import line_search, make_quantizer

    base = make_quantizer(spec, *stats.range(spec.granularity))
    search = config.model_dump(exclude={"use"})
    factor, _ = line_search(stats, base.scaled, granularity=spec.granularity, objective=objective, **search)
    return QuantizerChoice(base.scaled(factor), f"{reason}, {float(factor.mean()):.2f} of min-max")
