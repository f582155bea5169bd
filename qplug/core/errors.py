"""Every error that qplug raises on purpose; the command line prints it and exits with its code."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from qplug.core.text import LONGEST_PLACE, short

P = ParamSpec("P")
T = TypeVar("T")


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
        parts = [f"{short(self.where, LONGEST_PLACE)}: {self.what}" if self.where else self.what]
        if self.fix:
            parts.append(f"  → {self.fix}")
        return "\n".join(parts)


OUT_OF_MEMORY = (
    *("out of memory", "not enough memory", "could not create a primitive", "can't allocate memory", "bad_alloc"),
    *("cannot allocate memory", "failed to allocate memory", "failed to map segment"),
)
"""Parts of the messages with which torch, oneDNN, CUDA, ONNX Runtime and the linker say that memory ran out."""


def out_of_memory(error: BaseException | None) -> bool:
    """Whether ``error``, or an error that caused it, says that memory ran out."""
    while error is not None:
        if isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY):
            return True
        error = error.__cause__
    return False


def ending(end: BaseException) -> str:
    """The line that raised a ``SystemExit`` or ``GeneratorExit``, in the words of a message."""
    frames = traceback.extract_tb(end.__traceback__)
    place = f" in {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(end).__name__}({end})" + place


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
        lines = [f"{short(self.where, LONGEST_PLACE)}: {self.what}"]
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


def exits_named(function: Callable[P, T]) -> Callable[P, T]:
    """``function``, in which a ``sys.exit`` of a model, plugin or data source is a ``PluginError``."""

    @functools.wraps(function)
    def named(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except Terminated:
            raise
        except (SystemExit, GeneratorExit) as end:
            raise PluginError(
                f"code that qplug called ended the program: {ending(end)}",
                fix="let it raise an error, or return, instead",
            ) from end

    return named
