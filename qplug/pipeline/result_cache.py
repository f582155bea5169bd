"""Cache of statistics, float outputs, quantizers and trainings, keyed by everything that they depend on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from torch import Tensor

from qplug.core.component import Component, ModelSource
from qplug.core.errors import InputError
from qplug.core.storage.cache import Cache, CacheSlot
from qplug.core.storage.hashing import content_key, fingerprint, images_digest
from qplug.core.types import QuantSpec, Site
from qplug.pipeline.code_identity import code_of
from qplug.pipeline.run_key import versions
from qplug.quantization.calibration.serialize import calibration_state, restore_calibration
from qplug.quantization.choice import QuantizerChoice
from qplug.quantization.plan import quantizer_of
from qplug.quantization.quantizers import Quantizer

if TYPE_CHECKING:
    from qplug.core.component import Technique
    from qplug.core.examples import Examples
    from qplug.data.preparation import Preparation
    from qplug.models.float_model import FloatModel
    from qplug.pipeline.clock import Clock
    from qplug.quantization.calibration.calibrator import Calibration
    from qplug.quantization.calibration.statistics import SiteStats

WORTH_CACHING = 0.02
"""A quantizer that took fewer seconds is not cached."""


class ResultCache:
    """Looks a result up before it is computed, and tells the clock the time that was saved.

    The weights of a model and its ``repr`` do not say all that it computes: its modules' code does, and the values that
    they were made with. A part whose code is in no file (typed at a prompt) switches the cache off.

    Args:
        cache: keeps the results; ``None`` computes everything.
        clock: of the run.
        quantizers: kind → ``module:Class``, as ``Registry.quantizers`` holds it.
    """

    def __init__(self, cache: Cache | None, clock: Clock, quantizers: Mapping[str, str]) -> None:
        self.cache, self._clock, self._quantizers = cache, clock, quantizers
        self._common: dict[str, Any] = {}
        self._makers: dict[int, list[Any] | None] = {}

    def identify(self, *made_by: object, **common: Any) -> None:
        """Set what every result depends on, before the first one is looked up.

        Args:
            made_by: the objects whose code made the float model: its source, the techniques that rewrote it, adapters,
                modules. The configuration of a component counts too.
            **common: values as ``content_key`` takes them.
        """
        if self.cache is None:
            return
        try:
            values = [_values(part) for part in made_by if isinstance(part, Component)]
            self._common = {**common, "made_by": values, "code": code_of(made_by), "packages": versions()}
        except InputError:
            self.cache = None

    def slot(self, kind: str, parts: Callable[[], dict[str, Any]]) -> CacheSlot:
        """The place of a result that depends on ``parts`` and on everything of ``identify``.

        ``parts`` is called only with a cache.
        """
        if self.cache is None:
            return CacheSlot(None, kind, "", None)
        key = content_key(**self._common, **parts())
        entry = self.cache.load(kind, key)
        if entry is not None:
            self._clock.save(entry.about["seconds"])
        return CacheSlot(self.cache, kind, key, entry)

    def collect(
        self,
        statistics: Calibration,
        stream: Iterable[Tensor],
        loss: str,
        advance: Callable[[int], None],
        prepared: tuple[Examples, Preparation],
    ) -> None:
        """Collect ``statistics`` from ``stream``, or restore them from the cache.

        Args:
            statistics: to fill.
            stream: batches of inputs.
            loss: of ``calibration.loss``, or ``none`` for no gradients.
            advance: called with the examples done.
            prepared: the examples, and how they become inputs: parts of the key.
        """
        images, preprocessing = prepared
        slot = self.slot(
            "statistics",
            lambda: {
                "model": [repr(statistics.model), fingerprint(statistics.model.state_dict())],
                "sites": [site.name for site in statistics.sites],
                "images": images_digest(images, labels=False),
                "preprocessing": repr(preprocessing),
                "loss": loss,
            },
        )
        if slot.tensors is not None:
            restore_calibration(statistics, slot.tensors)
            return
        statistics.collect(stream, None if loss == "none" else loss, advance)
        slot.keep(calibration_state(statistics))

    def choice(
        self, technique: Technique, site: Site, spec: QuantSpec, stats: SiteStats, ask: Callable[[], Any]
    ) -> Any:
        """The answer of ``ask``, or its cached answer for the same site, specification and statistics.

        A technique with state beside its configuration is called every time, since no key holds that state. An answer
        is not cached if the technique added a note: a run that finds it in the cache would not show the note.
        """
        if self.cache is None or vars(technique).keys() != {"config", "notes"} or technique.notes:
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
        entry = self.cache.load("quantizers", key)
        if entry is not None:
            self._clock.save(entry.about["seconds"])
            made = quantizer_of(entry.about["quantizer"], self._quantizers)
            return QuantizerChoice(made.to(stats.sample.device), entry.about["reason"])
        start = time.perf_counter()
        answer = ask()
        seconds = time.perf_counter() - start
        worth = isinstance(answer, QuantizerChoice) and seconds > WORTH_CACHING and not technique.notes
        if worth and self.round_trips(answer.quantizer):
            about = {"seconds": seconds, "quantizer": answer.quantizer.to_dict(), "reason": answer.reason}
            self.cache.store("quantizers", key, {}, about)
        return answer

    def identities(self, makers: Iterable[object]) -> list[Any] | None:
        """Configuration and code of each technique or backend that shapes a quantized model.

        ``None`` if the code of one is in no file.
        """
        found = [self._identity(maker) for maker in makers] if self.cache is not None else [None]
        return None if None in found else found

    def round_trips(self, quantizer: object) -> bool:
        """Whether a stored plan restores this quantizer; a subclass may have the ``kind`` of its base."""
        if not isinstance(quantizer, Quantizer) or quantizer.kind not in self._quantizers:
            return False
        return type(quantizer_of(quantizer.to_dict(), self._quantizers)) is type(quantizer)

    def quantizer(self, data: dict[str, Any]) -> Quantizer:
        """The quantizer that ``Quantizer.to_dict`` described."""
        return quantizer_of(data, self._quantizers)

    def _identity(self, maker: object) -> list[Any] | None:
        """Configuration and code of a technique or backend, read once a run; ``None`` if the code is in no file."""
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
    """The key of a float model and of the preparation of its inputs."""
    return [repr(source.module), source.fingerprint, repr(source.preprocessing)]


def stats_digest(stats: SiteStats) -> str:
    """SHA-256 over every tensor of a site's statistics and of its operation's sample."""
    held = {field.name: getattr(stats, field.name) for field in fields(stats)}
    if stats.product is not None:
        held |= {f"product.{field.name}": getattr(stats.product, field.name) for field in fields(stats.product)}
    return fingerprint({name: value for name, value in held.items() if isinstance(value, Tensor)})
