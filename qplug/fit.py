"""From sites to quantizers: what the recipe asks of each site, bits, and ranges, each fitted once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from qplug.errors import InputError, PluginError
from qplug.plan import Decision
from qplug.quantizers import Quantizer
from qplug.sensitivity import SqnrTable
from qplug.types import Choice, Granularity, QuantSpec, Site

if TYPE_CHECKING:
    from qplug.calibrate import Calibration
    from qplug.recipe.schema import Quantize
    from qplug.steps import Steps

RECIPE = "recipe"
OVERRIDE = "recipe, override"


class Specs(dict[str, QuantSpec]):
    """Specifications by site name, and which sites' bits an override fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed: set[str] = set()


def resolve(quantize: Quantize, sites: Sequence[Site]) -> tuple[Specs, dict[str, str]]:
    """What the recipe asks of each site, and the sites that it leaves in float (name → reason).

    Raises:
        InputError: an override that matches no site, or heads asked of a tensor that has none.
    """
    specs, skipped = Specs(), {}
    unused = list(quantize.overrides)
    for site in sites:
        spec = (quantize.weights if site.kind.is_weight else quantize.activations).spec()
        override = next((o for o in quantize.overrides if o.matches(site)), None)
        unused = [o for o in unused if not o.matches(site)]
        if override is not None and override.skip:
            skipped[site.name] = f"override {override.match!r}"
        elif override is not None:
            spec = replace(
                spec,
                bits=override.bits or spec.bits,
                granularity=override.granularity or spec.granularity,
                symmetric=spec.symmetric if override.symmetric is None else override.symmetric,
            )
            if override.bits:
                specs.fixed.add(site.name)
        if spec.granularity is Granularity.PER_HEAD and site.head_axis is None and site.name not in skipped:
            raise InputError(
                f"per_head asked of a tensor without heads ({site.kind.value})",
                where=site.name,
                fix="ask for it by override, for query, key, value, post_softmax or softmax_input alone",
            )
        specs[site.name] = spec
    if unused:
        raise InputError(
            f"the override {unused[0].match!r} matches no site of this model",
            where="quantize.overrides",
            fix="qplug inspect MODEL lists the sites and their kinds",
        )
    return specs, skipped


class Fitter:
    """Asks the techniques for quantizers, once for each site and bit width."""

    def __init__(self, steps: Steps, statistics: Calibration, specs: Specs) -> None:
        self._steps, self._statistics, self.specs = steps, statistics, specs
        self._known: dict[tuple[str, int], tuple[str, Choice]] = {}

    def fit(self, site: Site, bits: int) -> tuple[str, Choice]:
        """The technique that takes ``site`` at ``bits``, and its choice.

        Raises:
            PluginError: an answer that is no ``Choice``, has other bits, or scales that are not finite.
            InputError: no technique of the recipe takes the site.
        """
        key = (site.name, bits)
        if key not in self._known:
            spec = replace(self.specs[site.name], bits=bits)
            stats = self._statistics.stats(site)
            answer = self._steps.first("qplug_estimate_range", site=site, spec=spec, stats=stats)
            if answer is None:
                raise InputError(
                    f"no technique of the recipe estimates the range of {site.name} "
                    f"({site.kind.value}, {spec.granularity.value}, {bits} bits)",
                    where="techniques",
                    fix="add '- use: baseline.hessian' or '- use: baseline.minmax' as the last step",
                )
            technique, choice = answer
            _check(choice, bits, self._steps.where(technique, "qplug_estimate_range", site.name))
            self._known[key] = (technique.name(), choice)
        return self._known[key]

    def sqnr_db(self, site: Site, bits: int) -> float:
        """SQNR of ``site`` under the quantizer that it would get at ``bits``."""
        _, choice = self.fit(site, bits)
        stats = self._statistics.stats(site)
        return stats.sqnr_db(choice.quantizer.to(stats.sample.device).infer(stats.sample))

    def decide(
        self,
        sites: Sequence[Site],
        skipped: Mapping[str, str],
        allocation: tuple[str, Mapping[str, int]],
        advance: Callable[[int], None],
    ) -> dict[str, Decision]:
        """The decision for every site that is not skipped."""
        decisions: dict[str, Decision] = {}
        allocator, bits_of = allocation
        for site in sites:
            if site.name in skipped:
                continue
            spec = replace(self.specs[site.name], bits=bits_of.get(site.name, self.specs[site.name].bits))
            technique, choice = self.fit(site, spec.bits)
            by = allocator if site.name in bits_of else OVERRIDE if site.name in self.specs.fixed else RECIPE
            decisions[site.name] = Decision(site, spec, choice.quantizer, technique, choice.reason, by)
            advance(len(decisions))
        return decisions


def _check(choice: object, bits: int, where: str) -> None:
    if not isinstance(choice, Choice) or not isinstance(choice.quantizer, Quantizer):
        raise PluginError(f"expected a Choice with a Quantizer, got {type(choice).__name__}", where=where)
    if choice.quantizer.bits != bits:
        raise PluginError(f"asked for {bits} bits, got a quantizer of {choice.quantizer.bits}", where=where)
    broken = [name for name, buffer in choice.quantizer.named_buffers() if not torch.isfinite(buffer).all()]
    if broken:
        raise PluginError(f"the quantizer's {', '.join(broken)} is not finite", where=where)


def allocate(
    steps: Steps, fitter: Fitter, sites: Sequence[Site], skipped: Mapping[str, str]
) -> tuple[tuple[str, Mapping[str, int]], SqnrTable | None]:
    """Ask for bits: (who allocated, site → bits), and the table that was asked, which lists no site fixed by override.

    Raises:
        PluginError: bits outside 2 … 16, or of a site that the table does not list.
    """
    if not steps.implements("qplug_allocate_bits"):
        return (RECIPE, {}), None
    free = [site for site in sites if site.name not in skipped and site.name not in fitter.specs.fixed]
    table = SqnrTable(free, {site.name: fitter.specs[site.name] for site in free}, fitter.sqnr_db)
    answer = steps.first("qplug_allocate_bits", table=table)
    if answer is None:
        return (RECIPE, {}), table
    technique, bits = answer
    known = {site.name for site in free}
    wrong = {name: b for name, b in bits.items() if name not in known or not isinstance(b, int) or not 2 <= b <= 16}
    if wrong:
        name, value = next(iter(wrong.items()))
        raise PluginError(
            f"{len(wrong)} allocations are not of a listed site with 2 … 16 bits, for example {name}: {value!r}",
            where=steps.where(technique, "qplug_allocate_bits"),
        )
    return (technique.name(), bits), table
