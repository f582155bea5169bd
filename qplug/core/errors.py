"""Every error that qplug raises on purpose; the command line turns each into one screen of text and an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class QplugError(Exception):
    """Base of all errors raised on purpose. ``exit_code`` is what the command line ends with.

    Args:
        what: what was expected and what came, as one sentence.
        where: the place: ``file:line:column``, a site, a technique with its plugin and version.
        fix: what the reader can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.fix:
            parts.append(f"  → {self.fix}")
        return "\n".join(parts)


class Terminated(SystemExit):
    """The process was told to stop by a signal: no fault of the plugin that was running."""


class InputError(QplugError):
    """What the user gave (a file, a folder, an image, a checkpoint, an option) cannot be used."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a recipe: where it stands, what is wrong, and what to do."""

    where: str
    what: str
    fix: str = ""
    snippet: str = ""

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}"]
        if self.snippet:
            lines.append(self.snippet)
        if self.fix:
            lines.append(f"  → {self.fix}")
        return "\n".join(lines)


class RecipeError(InputError):
    """A recipe that does not validate, with every problem found in it, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class PluginError(QplugError):
    """A plugin broke its contract or raised while running; names technique, distribution and version."""


class ParityError(QplugError):
    """A runtime does not compute from an exported file what was simulated."""


class EquivalenceError(QplugError):
    """A step that promised to preserve the function of the model did not."""
