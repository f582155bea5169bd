"""Problems of a recipe → at most one screen of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qplug.core.errors import Problem

if TYPE_CHECKING:
    from rich.text import Text

SCREEN = 24


def render_problems(problems: Sequence[Problem], height: int = SCREEN) -> list[Problem | str]:
    """The first problems that fit into ``height`` lines (one at least), and a last line that counts them all."""
    shown, used = len(problems), 1
    for index, problem in enumerate(problems):
        used += 1 + str(problem).count("\n")
        if index and used > height:
            shown = index
            break
    rest = len(problems) - shown
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
    return [*problems[:shown], f"{count}, {rest} of them not shown" if rest else count]


def styled(problem: Problem) -> Text:
    """One problem for a terminal: the place, the line with its caret, and what to do."""
    from rich.text import Text

    text = Text.assemble((problem.where, "bold"), f": {problem.what}")
    if problem.snippet:
        line, _, caret = problem.snippet.partition("\n")
        text.append(f"\n{line}\n", style="dim")
        text.append(caret, style="bold red")
    if problem.fix:
        text.append("\n  → ", style="bold green")
        text.append(problem.fix)
    return text
