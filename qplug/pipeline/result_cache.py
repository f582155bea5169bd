"""What a run need not compute again: statistics, float logits and quantizers, known by what they were computed from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from torch import Tensor

from qplug.core.component import Component, ModelSource
from qplug.core.errors import InputError
from qplug.core.storage.hashing import content_key, fingerprint, images_digest
from qplug.core.types import QuantSpec, Site
from qplug.pipeline.run_key import code_of, versions
from qplug.quantization.choice import QuantizerChoice
from qplug.quantization.plan import quantizer_of
from qplug.quantization.quantizers import Quantizer

if TYPE_CHECKING:
    from qplug.core.component import Technique
    from qplug.core.examples import Examples
    from qplug.core.storage.cache import Cache, Entry
    from qplug.data.preparation import Preparation
    from qplug.models.float_model import FloatModel
    from qplug.pipeline.clock import Clock
    from qplug.quantization.calibration.calibrator import Calibration
    from qplug.quantization.calibration.statistics import SiteStats

WORTH = 0.02
"""Seconds that a quantizer must have taken, to be worth a file."""


class CacheSlot:
    """One result: ``tensors`` (on the CPU) and what is noted ``about`` them, or a place to keep it, if it ``keeps``."""

    def __init__(self, cache: Cache | None, kind: str, key: str, entry: Entry | None) -> None:
        self.tensors: Mapping[str, Tensor] | None = entry.tensors if entry else None
        self.about: Mapping[str, Any] = entry.about if entry else {}
        self._place, self._cache, self._start = (kind, key), cache, time.perf_counter()
        self.keeps = cache is not None

    def keep(
        self, tensors: Mapping[str, Tensor], seconds: float | None = None, about: Mapping[str, Any] | None = None
    ) -> None:
        """Keep what was computed, which took ``seconds``, or the time since the slot was made; ``about`` is JSON."""
        if self._cache is not None:
            seconds = time.perf_counter() - self._start if seconds is None else seconds
            self._cache.store(*self._place, tensors, {**(about or {}), "seconds": seconds})


class ResultCache:
    """Asks a cache before it computes, and tells the clock what that saved.

    A model's weights and its ``repr`` do not tell all that it computes: its code does, and the values with which it was
    made. Where a part of it is in no file (typed at a prompt), nothing is kept.

    Args:
        cache: where results are kept; ``None`` computes everything.
        clock: of the run.
        quantizers: kind → ``module:Class``, as ``Registry.quantizers`` holds it.
        made_by: whose code made the float model what it is: its source, the techniques that rewrote it, adapters,
            modules. Of components, their values count too.
        **common: what else every result of this run depends on, as ``content_key`` takes it.
    """

    def __init__(
        self,
        cache: Cache | None,
        clock: Clock,
        quantizers: Mapping[str, str],
        made_by: Iterable[object] = (),
        **common: Any,
    ) -> None:
        self._cache, self._clock, self._quantizers = cache, clock, quantizers
        self._common: dict[str, Any] = {}
        self._makers: dict[int, list[Any] | None] = {}
        if cache is not None:
            parts = list(made_by)
            try:
                values = [_values(part) for part in parts if isinstance(part, Component)]
                self._common = {**common, "made_by": values, "code": code_of(parts), "packages": versions()}
            except InputError:
                self._cache = None

    def slot(self, kind: str, parts: Callable[[], dict[str, Any]]) -> CacheSlot:
        """The place of a result that depends on ``parts`` and on what is common; they are asked only with a cache."""
        if self._cache is None:
            return CacheSlot(None, kind, "", None)
        key = content_key(**self._common, **parts())
        entry = self._cache.load(kind, key)
        if entry is not None:
            self._clock.save(entry.about["seconds"])
        return CacheSlot(self._cache, kind, key, entry)

    def collect(
        self,
        statistics: Calibration,
        stream: Iterable[Tensor],
        loss: str,
        advance: Callable[[int], None],
        prepared: tuple[Examples, Preparation],
    ) -> None:
        """Let ``statistics`` collect from ``stream``, ``prepared`` being the images and how they become its batches."""
        images, preprocessing = prepared
        slot = self.slot(
            "statistics",
            lambda: {
                "model": [repr(statistics.model), fingerprint(statistics.model.state_dict())],
                "sites": [site.name for site in statistics.sites],
                "images": images_digest(images),
                "preprocessing": repr(preprocessing),
                "loss": loss,
            },
        )
        if slot.tensors is not None:
            statistics.restore(slot.tensors)
            return
        statistics.collect(stream, None if loss == "none" else loss, advance)
        slot.keep(statistics.state())

    def choice(
        self, technique: Technique, site: Site, spec: QuantSpec, stats: SiteStats, ask: Callable[[], Any]
    ) -> Any:
        """What ``ask`` answers for a range, or answered for the same statistics.

        A technique that remembers anything beside its configuration is asked every time: what it remembers, of a
        smoothing for example, is in no key.
        """
        if self._cache is None or vars(technique).keys() != {"config", "notes"} or technique.notes:
            return ask()
        identity = self._identity(technique)
        if identity is None:
            return ask()
        key = content_key(
            **self._common,
            technique=identity,
            site={**asdict(site), "kind": site.kind.value},
            spec={**asdict(spec), "granularity": spec.granularity.value},
            stats=stats_digest(stats),
        )
        entry = self._cache.load("quantizers", key)
        if entry is not None:
            self._clock.save(entry.about["seconds"])
            made = quantizer_of(entry.about["quantizer"], self._quantizers)
            return QuantizerChoice(
                made.to(stats.sample.device), entry.about["reason"]
            )  # as who computes it would have it
        start = time.perf_counter()
        answer = ask()
        seconds = time.perf_counter() - start
        told = bool(technique.notes)  # which a run that recalls the answer would not tell
        if isinstance(answer, QuantizerChoice) and seconds > WORTH and not told and self.comes_back(answer.quantizer):
            about = {"seconds": seconds, "quantizer": answer.quantizer.to_dict(), "reason": answer.reason}
            self._cache.store("quantizers", key, {}, about)
        return answer

    def identities(self, makers: Iterable[object]) -> list[Any] | None:
        """What those are that make a quantized model, techniques and backend: each one's values and its code.

        ``None`` where the code of one is in no file.
        """
        found = [self._identity(maker) for maker in makers] if self._cache is not None else [None]
        return None if None in found else found

    def comes_back(self, quantizer: object) -> bool:
        """Whether a file gives back this quantizer: one that derives from another may have the kind of that one."""
        if not isinstance(quantizer, Quantizer) or quantizer.kind not in self._quantizers:
            return False
        return type(quantizer_of(quantizer.to_dict(), self._quantizers)) is type(quantizer)

    def quantizer(self, data: dict[str, Any]) -> Quantizer:
        """The quantizer that ``Quantizer.to_dict`` described."""
        return quantizer_of(data, self._quantizers)

    def _identity(self, maker: object) -> list[Any] | None:
        """Values and code of a technique or a backend, read once a run; ``None`` where the code is in no file."""
        if id(maker) not in self._makers:
            try:
                values = _values(maker) if isinstance(maker, Component) else type(maker).__qualname__
                self._makers[id(maker)] = [values, code_of([maker])]
            except InputError:
                self._makers[id(maker)] = None
        return self._makers[id(maker)]


def _values(part: Component) -> dict[str, Any]:
    values: dict[str, Any] = part.key() if isinstance(part, ModelSource) else part.config.model_dump(mode="json")
    return values


def source_key(source: FloatModel) -> list[str]:
    """Of a float model, with how its images are prepared."""
    return [repr(source.module), source.fingerprint, repr(source.preprocessing)]


def stats_digest(stats: SiteStats) -> str:
    """SHA-256 over every tensor of a site's statistics and of its operation's sample, not over what is made of them."""
    held = {field.name: getattr(stats, field.name) for field in fields(stats)}
    if stats.product is not None:
        held |= {f"product.{field.name}": getattr(stats.product, field.name) for field in fields(stats.product)}
    return fingerprint({name: value for name, value in held.items() if isinstance(value, Tensor)})
