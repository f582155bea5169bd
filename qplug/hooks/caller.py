"""The techniques of one run: a fresh hook manager, and calls that seed, name the culprit, and remember who answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

from qplug.core.component import Technique
from qplug.core.errors import PluginError, QplugError, Terminated
from qplug.core.seeding import seeded
from qplug.core.text import listed
from qplug.core.types import Event
from qplug.hooks import specs
from qplug.hooks.manager import Manager
from qplug.hooks.registry import Registry
from qplug.hooks.torch_state import torch_state_kept, versions_of


class TechniqueCaller:
    """One instance for each step of a recipe, registered so that the first step is asked first.

    Args:
        techniques: the steps, in recipe order.
        registry: tells which plugin each comes from.
        seed: the recipe's seed; every call of a hook starts from a seed made of it, the technique and the site.
        observers: objects that implement ``qplug_observe``.
    """

    def __init__(
        self, techniques: Sequence[Technique], registry: Registry, seed: int, observers: Sequence[object] = ()
    ) -> None:
        self.techniques = list(techniques)
        self._registry = registry
        self._seed = seed
        self._manager = Manager(specs.RunSpecs)
        for plugin in (*reversed(self.techniques), *observers):  # pluggy asks the last registered first
            self._manager.register(plugin)
        self._manager.check_pending()
        self._order: dict[str, list[tuple[Technique, Any]]] = {}
        self._answered: set[int] = set()

    @property
    def blocks(self) -> Sequence[str]:
        """``module:Class`` of what is reconstructed as a whole, as the installed plugins declare it."""
        return self._registry.blocks

    def need_gradients(self) -> bool:
        """Whether any step's statistics must hold gradients."""
        return any(technique.gradients for technique in self.techniques)

    def idle(self) -> list[str]:
        """A warning for every technique that was never the one to answer."""
        return [
            f"{technique.name()} had nothing to do: no site, norm or module was left for it"
            for technique in self.techniques
            if id(technique) not in self._answered
        ]

    def notes(self) -> list[str]:
        """What the techniques want to be known of what they did."""
        return [f"{technique.name()}: {note}" for technique in self.techniques for note in technique.notes]

    def implements(self, hook: str) -> bool:
        """Whether any step implements ``hook``."""
        return bool(self._callers(hook))

    def first(self, hook: str, **arguments: Any) -> tuple[Technique, Any] | None:
        """The first result that is not ``None``, and who gave it."""
        return next(self.each(hook, **arguments), None)

    def each(self, hook: str, **arguments: Any) -> Iterator[tuple[Technique, Any]]:
        """The results that are not ``None``, one technique at a time, each asked when it is its turn."""
        for technique, caller in self._callers(hook):
            result = self.call(technique, caller, hook, **arguments)
            if result is not None:
                yield technique, result

    def each_technique(self, hook: str) -> list[tuple[Technique, Any]]:
        """The techniques that implement ``hook``, in order, each with its own caller for ``call``."""
        return self._callers(hook)

    def call(self, technique: Technique, caller: Any, hook: str, **arguments: Any) -> Any:
        """One call of one technique's hook: seeded, and any error named with technique, plugin and version.

        Settings of torch that the technique changed are restored. They become a note of the technique, which is a
        warning of the run. A technique that writes to a tensor that it was given is an error.
        """
        subject = next((getattr(v, "name", getattr(v, "norm", v)) for v in arguments.values()), "")
        given = versions_of(arguments)
        with (
            seeded(self._seed, technique.name(), subject if isinstance(subject, str) else ""),
            self._guarded(technique, hook, subject),
        ):
            result = caller(**arguments)
        written = [name for name, (tensor, version) in given.items() if tensor._version != version]
        if written:
            raise PluginError(
                f"wrote to {listed(written)}, which the other techniques and the run read too",
                where=self.where(technique, hook, subject),
                fix=f"copy it before you change it, as in {written[0]}.clone()",
            )
        if isinstance(result, list):  # a broadcast hook answers with a list, of one here
            result = result[0] if result else None
        if result is not None:
            self.answered(technique)
        return result

    @contextmanager
    def _guarded(self, technique: Technique, hook: str, subject: object) -> Iterator[None]:
        """``blame``; settings of torch that changed are restored, and named in a note of the technique."""
        with self.blame(technique, hook, subject), torch_state_kept() as changed:
            yield
        for what in changed:  # a warning and no error: what is computed behind the call is right
            note = f"{hook} changed {what}; qplug restored it"
            technique.notes += [note] if note not in technique.notes else []

    @contextmanager
    def blame(self, technique: Technique, hook: str, subject: object = "") -> Iterator[None]:
        """Whatever is raised within names the technique, its plugin and version, and what it worked on."""
        try:
            yield
        except QplugError as error:
            error.where = error.where or self.where(technique, hook, subject)
            raise
        except Terminated:
            raise
        except (Exception, SystemExit, GeneratorExit) as error:
            raise PluginError(
                f"{type(error).__name__}: {error}",
                where=self.where(technique, hook, subject),
                fix="report it to the plugin's authors; --traceback shows where it was raised",
            ) from error

    def answered(self, technique: Technique) -> None:
        """Remember that ``technique`` had something to do."""
        self._answered.add(id(technique))

    def where(self, technique: Technique, hook: str, subject: object = "") -> str:
        """For errors: technique, plugin, version, hook and site."""
        owner = self._registry.owner(type(technique))
        plugin = f" of {owner.distribution} {owner.version}" if owner else ""
        at = f" at {subject}" if isinstance(subject, str) and subject else ""
        return f"{technique.name()}{plugin}, {hook}{at}"

    def observe(
        self, stage: str, phase: Literal["start", "advance", "end"], done: int = 0, total: int = 0, note: str = ""
    ) -> None:
        """Tell the observers, and the techniques that watch."""
        event = Event(stage, phase, done, total, note)
        for watcher, caller in self._callers("qplug_observe"):
            guard = self._guarded(watcher, "qplug_observe", stage) if isinstance(watcher, Technique) else nullcontext()
            with guard:
                caller(event=event)

    def _callers(self, hook: str) -> list[tuple[Technique, Any]]:
        if hook not in self._order:
            place = {id(technique): i for i, technique in enumerate(self.techniques)}  # pluggy would reverse trylast's
            impls = sorted(
                getattr(self._manager.hook, hook).get_hookimpls(),
                key=lambda impl: (impl.trylast - impl.tryfirst, place.get(id(impl.plugin), len(place))),
            )
            everyone = self._manager.get_plugins()
            self._order[hook] = [
                (impl.plugin, self._manager.subset_hook_caller(hook, [p for p in everyone if p is not impl.plugin]))
                for impl in impls
            ]
        return self._order[hook]
