"""Asks the techniques for the quantizer of each site, once for each bit width."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from qplug.core.errors import InputError, PluginError
from qplug.core.types import QuantSpec, Site
from qplug.pipeline.specs import OVERRIDE, RECIPE, Specs
from qplug.quantization.choice import QuantizerChoice
from qplug.quantization.plan import Decision
from qplug.quantization.quantizers import Quantizer

if TYPE_CHECKING:
    from qplug.core.component import Technique
    from qplug.hooks.caller import TechniqueCaller
    from qplug.pipeline.result_cache import ResultCache
    from qplug.quantization.calibration.calibrator import Calibration
    from qplug.quantization.calibration.statistics import SiteStats


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
            answer = self._steps.first("qplug_alternation_rounds", operands=operands)
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
                found[site.name] = self._ask(
                    site, specs[site], self.stats(site).with_quantized_operand(beside, quantized)
                )
                seen[site.name] = quantized
        return found

    def _ask(self, site: Site, spec: QuantSpec, stats: SiteStats) -> tuple[Technique, QuantizerChoice]:
        hook = "qplug_make_quantizer"
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
