"""Tables on a terminal, drawn by rich within its width, or in a pipe, as aligned plain text of any width."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TextIO

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
        less: names of the columns that a narrow terminal shows last, below the others, or as a note if all of their
            cells are equal.
        styles: index of a row, or text of a cell → style on a terminal, as rich names it.
    """

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    right: Sequence[str] = ()
    notes: Sequence[str] = ()
    prose: str = ""
    less: Sequence[str] = ()
    styles: Mapping[int | str, str] = field(default_factory=dict)

    def safe(self) -> Table:
        """The same table with ``escaped`` texts: names in it come from recipes, files and plugins."""
        rows = [[escaped(cell, breaks=False) for cell in row] for row in self.rows]
        columns, right, less = (
            [escaped(name, breaks=False) for name in names] for names in (self.columns, self.right, self.less)
        )
        notes, title = [escaped(note) for note in self.notes], escaped(self.title, breaks=False)
        texts: dict[str, Any] = {"title": title, "columns": columns, "right": right, "less": less, "rows": rows}
        return replace(self, **texts, notes=notes, prose=escaped(self.prose))

    def narrow(self, space: int) -> Table:
        """The table for a terminal of ``space`` characters: itself if it fits, else with the columns ``less`` last.

        Those without cells or with those of the first column are left out, and those with equal cells in all rows
        become a note. A dim row, such as the float model's, may be empty there.
        """
        if not self.less or sum(self._natural()) + GAP * (len(self.columns) - 1) <= space:
            return self
        plain = [row for index, row in enumerate(self.rows) if self.styles.get(index) != "dim"] or self.rows
        cells = {name: {row[index] for row in plain} for index, name in enumerate(self.columns)}
        repeated = {n for i, n in enumerate(self.columns) if i and all(row[i] == row[0] for row in plain)}
        first = [name for name in self.columns if name not in self.less]
        later = [name for name in self.columns if name in self.less and name not in repeated]
        alike = [name for name in later if len(cells[name]) == 1]
        order = first + [name for name in later if name not in alike]
        places = [self.columns.index(name) for name in order]
        same = ", ".join(f"{name} {next(iter(cells[name]))}" for name in alike if cells[name] != {""})
        notes = [f"in every row: {same}" if len(plain) > 1 else same] if same else []
        rows = [[row[place] for place in places] for row in self.rows]
        return replace(self, columns=order, rows=rows, notes=[*notes, *self.notes])

    def _natural(self) -> list[int]:
        """Width of each column without wrapping."""
        count = len(self.columns) or max((len(row) for row in self.rows), default=0)
        heads = [len(name) for name in self.columns] or [0] * count
        return [max([heads[i], *(len(row[i]) for row in self.rows if i < len(row))]) for i in range(count)]

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
        if self.terminal:
            table = table.narrow(self.console.width)
        if not self.terminal:
            self.stream.write(f"{table.plain()}\n\n")
            return
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        if table.title:
            self.console.print(Text(table.title, style="bold"))
        for part in table.parts(self.console.width) if table.rows else ():
            drawn = RichTable(
                box=box.SIMPLE_HEAD,
                show_edge=False,
                pad_edge=False,
                show_header=bool(table.columns),
            )
            for index, width in part:
                column = table.columns[index] if table.columns else ""
                side: Literal["left", "right"] = "right" if column and column in table.right else "left"
                drawn.add_column(Text(column, style="cyan"), justify=side, overflow="fold", width=width)
            for number, row in enumerate(table.rows):
                cells = (Text(row[index], style=table.styles.get(row[index], "")) for index, _ in part)
                drawn.add_row(*cells, style=table.styles.get(number))
            self.console.print(drawn)
            self.console.print()
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
