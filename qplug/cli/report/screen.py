"""Prints tables: with rich on a terminal, and as aligned plain text, never cut, anywhere else."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from qplug.core.errors import QplugError, RecipeError

if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class Table:
    """Rows of text under a title; ``right`` names the columns of numbers. Without columns, rows are label and value.

    ``notes`` are lines below, and ``prose`` is text whose paragraphs a terminal may wrap anew.
    """

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    right: Sequence[str] = ()
    notes: Sequence[str] = ()
    prose: str = ""

    def plain(self) -> str:
        """Aligned text without lines, colours or limits of width."""
        rows = [*([self.columns] if self.columns else []), *self.rows]
        widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))] if rows else []
        sides = [index < len(self.columns) and self.columns[index] in self.right for index in range(len(widths))]
        lines = [self.title] if self.title else []
        for row in rows:
            cells = zip(row, widths, sides, strict=True)
            lines.append("  ".join(cell.rjust(width) if side else cell.ljust(width) for cell, width, side in cells))
        return "\n".join(line.rstrip() for line in [*lines, *self.notes, *self.prose.splitlines()])


class Screen:
    """A text stream that may be a terminal; rich is imported only where it is."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.terminal = stream.isatty()
        self._console: Console | None = None

    @property
    def console(self) -> Console:
        """rich's console on this stream."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(file=self.stream, highlight=False)
        return self._console

    def line(self, text: str = "", style: str = "") -> None:
        """Print one line; text in brackets is not markup."""
        if self.terminal:
            self.console.print(text, style=style or None, markup=False, soft_wrap=True)
        else:
            print(text, file=self.stream)

    def table(self, table: Table) -> None:
        """Print a table and an empty line."""
        if not self.terminal:
            print(table.plain() + "\n", file=self.stream)
            return
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        title = Text(table.title, style="bold") if table.title else None
        drawn = RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=bool(table.columns))
        for column in table.columns or [""] * max((len(row) for row in table.rows), default=0):
            drawn.add_column(Text(column), justify="right" if column in table.right else "left", overflow="fold")
        for row in table.rows:
            drawn.add_row(*(Text(cell) for cell in row))
        if table.rows or title:
            self.console.print(drawn)
        for note in table.notes:
            self.console.print(Text(note, style="dim"))
        for paragraph in filter(None, table.prose.split("\n\n")):
            self.console.print(Text(" ".join(paragraph.split()) + "\n", style="dim"))

    def error(self, error: QplugError) -> None:
        """Print an error on at most one screen."""
        if not isinstance(error, RecipeError):
            self.line(f"error: {error}", "red")
            return
        from qplug.recipe.report import SCREEN, render_problems, styled

        height = max(SCREEN, shutil.get_terminal_size().lines - 1) if self.terminal else SCREEN
        for part in render_problems(error.problems, height):
            if self.terminal and not isinstance(part, str):
                self.console.print(styled(part), soft_wrap=True)
            else:
                self.line(str(part), "bold red")
