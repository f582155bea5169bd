"""Every error that qplug raises on purpose; the command line prints it and exits with its code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class QplugError(Exception):
    """Base of all errors raised on purpose. ``exit_code`` is the exit code of the command line.

    Args:
        what: the expected and the received value, as one sentence.
        where: the location: ``file:line:column``, a site, or a technique with its plugin and version.
        fix: how to correct it.
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
    """An input of the user (a file, a folder, an image, a checkpoint, an option) cannot be used."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One problem of a recipe: its location, a description, and a fix."""

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
    """A recipe is invalid; holds all its problems in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class PluginError(QplugError):
    """A plugin violated a hook's contract or raised an error; names technique, distribution and version."""


class ParityError(QplugError):
    """A runtime's outputs of an exported file differ from those of the simulated model."""


class EquivalenceError(QplugError):
    """A step declared as function-preserving changed the function of the model."""
