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
from qplug.quantization.number_formats import NUMBER_FORMATS
from qplug.quantization.plan import Decision
from qplug.quantization.quantizers import Quantizer

if TYPE_CHECKING:
    from qplug.core.component import Technique
    from qplug.hooks.caller import TechniqueCaller
    from qplug.pipeline.result_cache import ResultCache
    from qplug.quantization.calibration.calibrator import Calibration
    from qplug.quantization.calibration.statistics import SiteStats


class QuantizerAssigner:
    """Asks the techniques once for each site and bit width; for alternating operands, once for each pair of widths.

    Args:
        caller: the techniques.
        statistics: of the float model, smoothed.
        specs: what the recipe asks.
        sites: the sites in scope; those that ``specs`` skips are left out.
        results: the cache of quantizers.
    """

    def __init__(
        self,
        caller: TechniqueCaller,
        statistics: Calibration,
        specs: Specs,
        sites: Sequence[Site],
        results: ResultCache,
    ) -> None:
        self._caller, self.specs, self._results = caller, specs, results
        self.stats = functools.cache(statistics.stats)
        self.sites = [site for site in sites if site.name in specs]
        self._operands: dict[str, list[Site]] = defaultdict(list)
        for site in self.sites:
            self._operands[site.module].append(site)
        self._known: dict[tuple[tuple[str, int], ...], dict[str, tuple[Technique, QuantizerChoice]]] = {}

    def choose(self, site: Site, bits: Mapping[str, int]) -> tuple[str, QuantizerChoice]:
        """The technique that takes ``site``, and its choice.

        Args:
            site: one of ``sites``.
            bits: by site name, where they differ from the recipe's.

        Raises:
            PluginError: an answer that is no ``QuantizerChoice``, has other bits, has scales that are not finite, or
                cannot quantize the site.
            InputError: no technique of the recipe takes the site.
        """
        operands, rounds = self._operands[site.module], 0
        if len(operands) == 2:
            answer = self._caller.first("qplug_alternation_rounds", operands=operands)
            rounds = answer[1] if answer else 0
        asked = operands if rounds else [site]
        specs = [replace(self.specs[s.name], bits=bits.get(s.name, self.specs[s.name].bits)) for s in asked]
        key = tuple((s.name, spec.bits) for s, spec in zip(asked, specs, strict=True))
        if key not in self._known:
            self._known[key] = self._alternate(dict(zip(asked, specs, strict=True)), rounds)
        technique, choice = self._known[key][site.name]
        return technique.name(), choice

    def _alternate(self, specs: Mapping[Site, QuantSpec], rounds: int) -> dict[str, tuple[Technique, QuantizerChoice]]:
        """Choose for each site beside its float partner, then ``rounds`` times beside the partner's quantizer.

        With rounds, the first site is never chosen beside a float partner, since the first round replaces that choice.
        A choice is not repeated while the partner's quantized values stay the same: rounds end at a fixed point.
        """
        sites = list(specs)
        choices = {site.name: self._ask(site, specs[site], self.stats(site)) for site in sites[bool(rounds) :]}
        partners: dict[str, torch.Tensor] = {}
        for site, other in [(a, b) for a in sites for b in sites if a is not b] * rounds:
            beside = self.stats(other)
            quantized = choices[other.name][1].quantizer.to(beside.sample.device).infer(beside.sample)
            if site.name not in partners or not torch.equal(partners[site.name], quantized):
                given = self.stats(site).with_quantized_operand(beside, quantized)
                choices[site.name] = self._ask(site, specs[site], given)
                partners[site.name] = quantized
        return choices

    def _ask(self, site: Site, spec: QuantSpec, stats: SiteStats) -> tuple[Technique, QuantizerChoice]:
        hook = "qplug_make_quantizer"
        for technique, caller in self._caller.each_technique(hook):
            call = functools.partial(self._caller.call, technique, caller, hook, site=site, spec=spec, stats=stats)
            choice = self._results.choice(technique, site, spec, stats, call)
            if choice is not None:
                _check(choice, spec, stats, self._caller.where(technique, hook, site.name))
                self._caller.answered(technique)
                return technique, choice
        raise InputError(
            f"no technique of the recipe estimates the range of {site.name} "
            f"({site.kind.value}, {spec.granularity.value}, {spec.bits} bits)",
            where="techniques",
            fix="add '- use: baseline.hessian' or '- use: baseline.minmax' as the last step",
        )

    def sqnr_db(self, site: Site, bits: int) -> float:
        """SQNR of ``site`` at ``bits``, under the quantizer that the techniques choose for it, in dB."""
        _, choice = self.choose(site, {site.name: bits})
        stats = self.stats(site)
        return stats.sqnr_db(choice.quantizer.to(stats.sample.device).infer(stats.sample))

    def decide(self, allocated_by: str, bits: Mapping[str, int], advance: Callable[[int], None]) -> dict[str, Decision]:
        """The decision for every site, at the bits that ``allocated_by`` chose."""
        decisions: dict[str, Decision] = {}
        for site in self.sites:
            technique, choice = self.choose(site, bits)
            spec = replace(self.specs[site.name], bits=choice.quantizer.bits)
            by = allocated_by if site.name in bits else OVERRIDE if site.name in self.specs.fixed else RECIPE
            decisions[site.name] = Decision(site, spec, choice.quantizer, technique, choice.reason, by)
            advance(len(decisions))
        return decisions


def _check(choice: object, spec: QuantSpec, stats: SiteStats, where: str) -> None:
    if not isinstance(choice, QuantizerChoice) or not isinstance(choice.quantizer, Quantizer):
        raise PluginError(f"expected a QuantizerChoice with a Quantizer, got {type(choice).__name__}", where=where)
    quantizer = choice.quantizer
    if quantizer.bits != spec.bits:
        raise PluginError(f"asked for {spec.bits} bits, got a quantizer of {quantizer.bits}", where=where)
    other = next((f.name for f in NUMBER_FORMATS.values() if f.kind == quantizer.kind), spec.number_format)
    if other != spec.number_format:
        fix = "make it by qplug.make_quantizer(spec, low, high), or return None for other number formats"
        raise PluginError(f"expected numbers of format {spec.number_format}, received {other}", where=where, fix=fix)
    broken = [name for name, buffer in quantizer.named_buffers() if not torch.isfinite(buffer).all()]
    if broken:
        raise PluginError(f"the quantizer's {', '.join(broken)} is not finite", where=where)
    _try(quantizer, stats, where)


def _try(quantizer: Quantizer, stats: SiteStats, where: str) -> None:
    """Quantize a weight, or one row of an activation's sample: scales that do not broadcast fail here, by name."""
    x = stats.sample if stats.site.kind.is_weight else stats.sample[:1]
    scales = ", ".join(f"{name} {tuple(buffer.shape)}" for name, buffer in quantizer.named_buffers())
    fix = f"its tensors must broadcast with the site's {tuple(x.shape)}; they are {scales or 'none'}"
    try:
        shape = tuple(quantizer.to(x.device).infer(x).shape)
    except Exception as error:
        what = f"the quantizer cannot quantize the site: {type(error).__name__}: {error}"
        raise PluginError(what, where=where, fix=fix) from error
    if shape != tuple(x.shape):
        raise PluginError(f"the quantizer makes {shape} of the site's {tuple(x.shape)}", where=where, fix=fix)
