"""Numbers and tables in a terminal: no word is cut, and columns that do not fit follow below, with the first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import replace
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

WHOLE = 24  # characters; a longer cell may be wrapped between words, to no less than these, and every head may


class Words(Table):
    """A table without lines whose title is as wide as the terminal.

    heads   number of its first columns, which each part of a wide table repeats
    """

    def __init__(self, title: str = "", heads: int = 1, **options: Any) -> None:
        super().__init__(box=None, pad_edge=False, padding=(0, 2, 0, 0), **options)
        self.text, self.heads = title, heads

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.text:
            yield Text(self.text, style="table.title", overflow="fold")
        for n, columns in enumerate(self.parts(console, options)):
            if n:
                yield Text()
            part = copy(self)
            part.columns = columns
            yield from Table.__rich_console__(part, console, options)

    def parts(self, console: Console, options: ConsoleOptions) -> Iterator[list[Column]]:
        """The columns of each part, each with its width: what it needs, or all that is there where it fits."""
        sizes = [self.sizes(console, options, column) for column in self.columns]
        heads = list(range(self.heads))
        room = options.max_width - sum(sizes[n].minimum for n in heads)
        sizes[self.heads :] = [size.clamp(max_width=max(room, 1)) for size in sizes[self.heads :]]
        part, used = heads.copy(), sum(sizes[n].minimum for n in heads)
        for n in range(self.heads, len(sizes)):
            if used + sizes[n].minimum > options.max_width and len(part) > len(heads):
                yield self.widened(part, sizes, options.max_width)
                part, used = heads.copy(), sum(sizes[n].minimum for n in heads)
            part.append(n)
            used += sizes[n].minimum
        yield self.widened(part, sizes, options.max_width)

    def sizes(self, console: Console, options: ConsoleOptions, column: Column) -> Measurement:
        """The least width of a column, in which no word is cut, and the width in which nothing is wrapped."""
        pad = self.padding[1]
        head = Measurement.get(console, options, column.header)
        cells = [Measurement.get(console, options, cell) for cell in column.cells]
        least = max([head.minimum, *(max(cell.minimum, min(cell.maximum, WHOLE)) for cell in cells)])
        return Measurement(least + pad, max([head.maximum, *(cell.maximum for cell in cells)]) + pad)

    def widened(self, part: list[int], sizes: list[Measurement], width: int) -> list[Column]:
        """Copies of the columns, which share the width that is left, the first ones first."""
        left = width - sum(sizes[n].minimum for n in part)
        columns = []
        for index, n in enumerate(part):
            more = max(0, min(left, sizes[n].maximum - sizes[n].minimum))
            left -= more
            own = sizes[n].minimum + more - self.padding[1]
            columns.append(replace(self.columns[n], _index=index, width=own, no_wrap=False, overflow="fold"))
        return columns


def plain_table(title: str, names: Iterable[str], numbers: Iterable[str] = ()) -> Table:
    """A table without lines, of columns of names and then of columns of numbers."""
    columns, numbered = list(names), list(numbers)
    table = Words(title, heads=len(columns) if numbered else 1)
    for column in columns:
        table.add_column(column)
    for column in numbered:
        table.add_column(column, justify="right")
    return table


def rounded(value: str) -> str:
    """A value in a name: a number with many digits, as a search draws it, to three of them."""
    try:
        return min(value, f"{float(value):.3g}", key=len)
    except ValueError:
        return value


def duration(seconds: float) -> str:
    """`75` → `1:15`."""
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def megabytes(size: float) -> str:
    """Bytes as a person reads them, in 10⁶ or 10⁹: `14.2 MB`, `23.1 GB`."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e10 else f"{size / 1e6:,.1f} MB"
