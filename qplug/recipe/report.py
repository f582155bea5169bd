"""Problems of a recipe as at most one screen of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qplug.core.errors import Problem
from qplug.core.text import LONGEST_PLACE, escaped, short

if TYPE_CHECKING:
    from rich.text import Text

SCREEN_LINES = 24
"""Lines of the smallest usual terminal."""


def render_problems(problems: Sequence[Problem], height: int = SCREEN_LINES) -> list[Problem | str]:
    """The first problems that fit into ``height`` lines, at least one, and a last line with the number of all."""
    printed, used = len(problems), 1
    for index, problem in enumerate(problems):
        used += 1 + str(problem).count("\n")
        if index and used > height:
            printed = index
            break
    rest = len(problems) - printed
    count = f"{len(problems):,} problem{'s' if len(problems) != 1 else ''}"
    return [*problems[:printed], f"and {rest:,} more; {count}" if rest else count]


def styled(problem: Problem) -> Text:
    """One problem for a terminal: place, line with caret, fix."""
    from rich.text import Text

    text = Text.assemble((short(problem.where, LONGEST_PLACE), "bold"), f": {escaped(problem.what)}")
    if problem.snippet:
        line, _, caret = problem.snippet.partition("\n")
        text.append(f"\n{line}\n", style="dim")
        text.append(caret, style="bold red")
    if problem.fix:
        text.append("\n  → ", style="bold green")
        text.append(escaped(problem.fix))
    return text
