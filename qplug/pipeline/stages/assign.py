"""From sites to quantizers: what the recipe asks of each site, bits, and ranges, each fitted once."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from qplug.core.errors import InputError, PluginError
from qplug.core.types import BackendOffer, Granularity, QuantSpec, Site
from qplug.quantization.accounting import convention
from qplug.quantization.choice import QuantizerChoice
from qplug.quantization.costs import costs
from qplug.quantization.plan import Decision, Plan
from qplug.quantization.quantizers import Quantizer
from qplug.quantization.sqnr_table import SqnrTable

if TYPE_CHECKING:
    from qplug.core.component import Technique
    from qplug.hooks.caller import TechniqueCaller
    from qplug.pipeline.result_cache import ResultCache
    from qplug.quantization.calibration.calibrator import Calibration
    from qplug.quantization.calibration.statistics import SiteStats
    from qplug.quantization.sites import SiteMap
    from qplug.recipe.schema import Quantize

RECIPE = "recipe"
OVERRIDE = "recipe, override"


class Specs(dict[str, QuantSpec]):
    """What the recipe asks of each site that it quantizes, by name.

    Attributes:
        fixed: sites whose bits an override fixes.
        skipped: sites that an override leaves in float, and why.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fixed: set[str] = set()
        self.skipped: dict[str, str] = {}


def resolve(quantize: Quantize, sites: Sequence[Site]) -> Specs:
    """What the recipe asks of each site.

    Raises:
        InputError: an override that matches no site, or heads asked of a tensor that has none.
    """
    specs = Specs()
    unused = list(quantize.overrides)
    for site in sites:
        spec = (quantize.weights if site.kind.is_weight else quantize.activations).spec()
        override = next((o for o in quantize.overrides if o.matches(site)), None)
        unused = [o for o in unused if not o.matches(site)]
        if override is not None and override.skip:
            specs.skipped[site.name] = f"override {override.match!r}"
            continue
        if override is not None:
            spec = replace(
                spec,
                bits=override.bits or spec.bits,
                granularity=override.granularity or spec.granularity,
                symmetric=spec.symmetric if override.symmetric is None else override.symmetric,
            )
            if spec.symmetric:
                spec = replace(spec, zero_point="integer")
            if override.bits:
                specs.fixed.add(site.name)
        if spec.granularity is Granularity.PER_HEAD and site.head_axis is None:
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
    return specs


class QuantizerAssigner:
    """Asks the techniques for quantizers, once for each site, its bits, and where operands alternate its partner's.

    Args:
        steps: the techniques.
        statistics: of the float model, smoothed.
        specs: what the recipe asks.
        sites: the sites in scope; those that ``specs`` skips are left out.
        recall: what need not be computed again.
    """

    def __init__(
        self, steps: TechniqueCaller, statistics: Calibration, specs: Specs, sites: Sequence[Site], recall: ResultCache
    ) -> None:
        self._steps, self.specs, self._recall = steps, specs, recall
        self.stats = functools.cache(statistics.stats)
        self.sites = [site for site in sites if site.name in specs]
        self._operands: dict[str, list[Site]] = defaultdict(list)
        for site in self.sites:
            self._operands[site.module].append(site)
        self._known: dict[tuple[tuple[str, int], ...], dict[str, tuple[Technique, QuantizerChoice]]] = {}

    def fit(self, site: Site, bits: Mapping[str, int]) -> tuple[str, QuantizerChoice]:
        """The technique that takes ``site``, and its choice.

        Args:
            site: one of ``sites``.
            bits: by site name, where they differ from the recipe's.

        Raises:
            PluginError: an answer that is no ``QuantizerChoice``, has other bits, or scales that are not finite.
            InputError: no technique of the recipe takes the site.
        """
        operands, rounds = self._operands[site.module], 0
        if len(operands) == 2:
            answer = self._steps.first("qplug_alternate", operands=operands)
            rounds = answer[1] if answer else 0
        asked = operands if rounds else [site]
        specs = [replace(self.specs[s.name], bits=bits.get(s.name, self.specs[s.name].bits)) for s in asked]
        key = tuple((s.name, spec.bits) for s, spec in zip(asked, specs, strict=True))
        if key not in self._known:
            self._known[key] = self._alternate(dict(zip(asked, specs, strict=True)), rounds)
        technique, choice = self._known[key][site.name]
        return technique.name(), choice

    def _alternate(self, specs: Mapping[Site, QuantSpec], rounds: int) -> dict[str, tuple[Technique, QuantizerChoice]]:
        """Fit each site against a float partner, then ``rounds`` times against what the partner has become.

        With rounds, the first site is fitted beside the second one's quantizer alone, as its fit against a float
        partner would be forgotten at once. Where a partner is what it was before, so would be the fit: it is kept, and
        rounds end at a fixed point.
        """
        sites = list(specs)
        found = {site.name: self._ask(site, specs[site], self.stats(site)) for site in sites[bool(rounds) :]}
        seen: dict[str, torch.Tensor] = {}
        for site, other in [(a, b) for a in sites for b in sites if a is not b] * rounds:
            beside = self.stats(other)
            quantized = found[other.name][1].quantizer.to(beside.sample.device).infer(beside.sample)
            if site.name not in seen or not torch.equal(seen[site.name], quantized):
                found[site.name] = self._ask(site, specs[site], self.stats(site).given(beside, quantized))
                seen[site.name] = quantized
        return found

    def _ask(self, site: Site, spec: QuantSpec, stats: SiteStats) -> tuple[Technique, QuantizerChoice]:
        hook = "qplug_estimate_range"
        for technique, caller in self._steps.each_technique(hook):
            call = functools.partial(self._steps.call, technique, caller, hook, site=site, spec=spec, stats=stats)
            choice = self._recall.choice(technique, site, spec, stats, call)
            if choice is not None:
                _check(choice, spec.bits, self._steps.where(technique, hook, site.name))
                self._steps.answered(technique)
                return technique, choice
        raise InputError(
            f"no technique of the recipe estimates the range of {site.name} "
            f"({site.kind.value}, {spec.granularity.value}, {spec.bits} bits)",
            where="techniques",
            fix="add '- use: baseline.hessian' or '- use: baseline.minmax' as the last step",
        )

    def sqnr_db(self, site: Site, bits: int) -> float:
        """SQNR of ``site`` under the quantizer that it would get at ``bits``, everything else as the recipe asks."""
        _, choice = self.fit(site, {site.name: bits})
        stats = self.stats(site)
        return stats.sqnr_db(choice.quantizer.to(stats.sample.device).infer(stats.sample))

    def decide(self, allocation: tuple[str, Mapping[str, int]], advance: Callable[[int], None]) -> dict[str, Decision]:
        """The decision for every site."""
        decisions: dict[str, Decision] = {}
        allocator, bits = allocation
        for site in self.sites:
            technique, choice = self.fit(site, bits)
            spec = replace(self.specs[site.name], bits=choice.quantizer.bits)
            by = allocator if site.name in bits else OVERRIDE if site.name in self.specs.fixed else RECIPE
            decisions[site.name] = Decision(site, spec, choice.quantizer, technique, choice.reason, by)
            advance(len(decisions))
        return decisions


def _check(choice: object, bits: int, where: str) -> None:
    if not isinstance(choice, QuantizerChoice) or not isinstance(choice.quantizer, Quantizer):
        raise PluginError(f"expected a QuantizerChoice with a Quantizer, got {type(choice).__name__}", where=where)
    if choice.quantizer.bits != bits:
        raise PluginError(f"asked for {bits} bits, got a quantizer of {choice.quantizer.bits}", where=where)
    broken = [name for name, buffer in choice.quantizer.named_buffers() if not torch.isfinite(buffer).all()]
    if broken:
        raise PluginError(f"the quantizer's {', '.join(broken)} is not finite", where=where)


def allocate(
    steps: TechniqueCaller, fitter: QuantizerAssigner, model: nn.Module, site_map: SiteMap, offer: BackendOffer
) -> tuple[tuple[str, Mapping[str, int]], SqnrTable | None]:
    """Ask for bits: (who allocated, site → bits), and the table that was asked, which lists no site fixed by override.

    Args:
        steps: the techniques.
        fitter: makes the quantizers that the table measures and counts.
        model: the float model, smoothed, and ``site_map``, all its sites: what costs are counted on.
        offer: of the recipe's backend.

    Raises:
        PluginError: bits outside 2 … 16, or of a site that the table does not list.
        InputError: bits that the backend does not have.
    """
    if not steps.implements("qplug_allocate_bits"):
        return (RECIPE, {}), None
    free = [site for site in fitter.sites if site.name not in fitter.specs.fixed]
    specs = {site.name: fitter.specs[site.name] for site in free}

    def count(bits: Mapping[str, int], accounting: str) -> dict[str, float]:
        decisions = fitter.decide((RECIPE, bits), lambda _: None)
        plan = Plan(decisions, float_macs=site_map.float_macs(decisions), total_macs=site_map.total_macs)
        return costs(model, plan, convention(accounting))

    table = SqnrTable(free, specs, fitter.sqnr_db, fitter.stats, count)
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
    beyond = {name: b for name, b in bits.items() if not offer.has(b)}
    if beyond:
        name, value = next(iter(beyond.items()))
        raise InputError(
            "the recipe's backend has {} to {} bits, ".format(*offer.bits)
            + f"and {len(beyond)} allocations are of others, for example {name}: {value}",
            where=steps.where(technique, "qplug_allocate_bits"),
            fix="configure the technique for bits that the backend has, or change the backend",
        )
    return (technique.name(), bits), table
