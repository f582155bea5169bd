"""Tables on a terminal, drawn by rich within its width, or in a pipe, as aligned plain text of any width."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TextIO

from qplug.core.errors import QplugError, RecipeError
from qplug.core.text import escaped

if TYPE_CHECKING:
    from rich.console import Console


GAP = 3
"""Characters between two columns on a terminal."""
READABLE = 20
"""Characters that a column of sentences needs at least."""


@dataclass
class Table:
    """Rows of text under a title. Without columns, each row is a label and a value.

    Attributes:
        right: names of the columns of numbers, which are aligned to the right.
        notes: lines below the table.
        prose: paragraphs below the notes, wrapped to the width of a terminal.
    """

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    right: Sequence[str] = ()
    notes: Sequence[str] = ()
    prose: str = ""

    def safe(self) -> Table:
        """The same table with ``escaped`` texts: names in it come from recipes, files and plugins."""
        rows = [[escaped(cell, breaks=False) for cell in row] for row in self.rows]
        notes = [escaped(note) for note in self.notes]
        return replace(self, title=escaped(self.title, breaks=False), rows=rows, notes=notes, prose=escaped(self.prose))

    def plain(self) -> str:
        """Aligned text without lines, colors or a limit of the width."""
        rows = [*([self.columns] if self.columns else []), *self.rows]
        widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))] if rows else []
        sides = [index < len(self.columns) and self.columns[index] in self.right for index in range(len(widths))]
        lines = [self.title] if self.title else []
        for row in rows:
            cells = zip(row, widths, sides, strict=True)
            lines.append("  ".join(cell.rjust(width) if side else cell.ljust(width) for cell, width, side in cells))
        return "\n".join(line.rstrip() for line in [*lines, *self.notes, *self.prose.splitlines()])

    def parts(self, space: int) -> Iterator[list[tuple[int, int]]]:
        """Split the columns into parts that fit into ``space`` characters: (column, its width) of each part.

        The first column is repeated in every part. Numbers and words stay whole; headers and sentences are wrapped.
        """
        count = len(self.columns) or max((len(row) for row in self.rows), default=0)
        cells = [[row[index] for row in self.rows if index < len(row)] for index in range(count)]
        natural, least = [], []
        for index in range(count):
            header = self.columns[index] if self.columns else ""
            full = max(map(len, cells[index]), default=0)
            number = header in self.right and bool(header)
            whole = full if number else min(max(_longest_word(cells[index]), min(full, READABLE)), space // 2)
            natural.append(max(full, len(header)))
            least.append(max(whole, _longest_word([header])))
        part: list[int] = []
        for index in range(count):
            if len(part) > 1 and sum(least[i] + GAP for i in (*part, index)) - GAP > space:
                yield _shrunk(part, natural, least, space)
                part = part[:1]
            part.append(index)
        if part:
            yield _shrunk(part, natural, least, space)


def _longest_word(texts: Sequence[str]) -> int:
    return max((len(word) for text in texts for word in text.split()), default=0)


def _shrunk(part: Sequence[int], natural: Sequence[int], least: Sequence[int], space: int) -> list[tuple[int, int]]:
    """Widths of the columns of a part: the widest are shrunk until the part fits, none below ``least``."""
    widths = {index: natural[index] for index in part}
    while sum(widths.values()) + GAP * (len(part) - 1) > space:
        shrinkable = [index for index in part if widths[index] > least[index]]
        if not shrinkable:
            break
        widths[max(shrinkable, key=widths.__getitem__)] -= 1
    return list(widths.items())


class Screen:
    """A text stream. rich is imported only if the stream is a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.terminal = stream.isatty()
        self._console: Console | None = None

    @property
    def console(self) -> Console:
        """The console of rich on this stream."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(file=self.stream, highlight=False)
        return self._console

    def line(self, text: str = "", style: str = "", *, wrap: bool = False) -> None:
        """Print one line. Text in square brackets is no markup. ``wrap`` breaks it between words on a terminal."""
        text = escaped(text)
        if self.terminal:
            self.console.print(text, style=style or None, markup=False, soft_wrap=not wrap)
        else:
            self.stream.write(f"{text}\n")

    def table(self, table: Table) -> None:
        """Print a table and an empty line."""
        table = table.safe()
        if not self.terminal:
            self.stream.write(f"{table.plain()}\n\n")
            return
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        title = Text(table.title, style="bold") if table.title else None
        if title and not table.rows:
            self.console.print(title)
        for part in table.parts(self.console.width) if table.rows else ():
            drawn = RichTable(
                title=title,
                title_justify="left",
                box=box.SIMPLE_HEAD,
                show_edge=False,
                pad_edge=False,
                show_header=bool(table.columns),
            )
            for index, width in part:
                column = table.columns[index] if table.columns else ""
                side: Literal["left", "right"] = "right" if column and column in table.right else "left"
                drawn.add_column(Text(column), justify=side, overflow="fold", width=width)
            for row in table.rows:
                drawn.add_row(*(Text(row[index]) for index, _ in part))
            self.console.print(drawn)
            self.console.print()
            title = None
        for note in table.notes:
            self.console.print(Text(note, style="dim"))
        if table.notes:
            self.console.print()
        for paragraph in filter(None, table.prose.split("\n\n")):
            self.console.print(Text(" ".join(paragraph.split()) + "\n", style="dim"))

    def error(self, error: QplugError) -> None:
        """Print an error. A recipe with many problems fills at most one screen."""
        if not isinstance(error, RecipeError):
            self.line(f"error: {error}", "red", wrap=True)
            return
        from qplug.recipe.report import SCREEN_LINES, render_problems, styled

        height = max(SCREEN_LINES, shutil.get_terminal_size().lines - 1) if self.terminal else SCREEN_LINES
        for part in render_problems(error.problems, height):
            if self.terminal and not isinstance(part, str):
                self.console.print(styled(part))
            else:
                self.line(str(part), "bold red")
