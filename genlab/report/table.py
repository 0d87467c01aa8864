"""Tables for people: ruled in a terminal, plain aligned text in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, TextIO

from genlab.text import printable

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class MetricsTable:
    """A table that prints itself: `show()` chooses the form, `str()` is the plain one, rich consoles rule it.

    Args:
        columns: The headings.
        cells: The texts, row by row.
        numeric: For each column, whether it holds numbers, which are aligned at the right.
    """

    columns: list[str]
    cells: list[list[str]]
    numeric: list[bool]

    def show(self, file: TextIO | None = None) -> None:
        """Prints to a file, standard output if None: ruled when a person reads it, else plain."""
        file = file or sys.stdout
        if not file.isatty():
            print(self, file=file)
            return
        from rich.console import Console

        Console(file=file, highlight=False).print(self.ruled())

    @property
    def width(self) -> int:
        """Characters that a line takes in a terminal, rules included."""
        from rich.cells import cell_len

        lines = [self.columns, *self.cells]
        return 1 + sum(3 + max(map(cell_len, column)) for column in zip(*lines, strict=True))

    def ruled(self) -> Table:
        """Returns the table for a rich console; no cell is read as markup."""
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for name, numeric in zip(self.columns, self.numeric, strict=True):
            table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
        for row in self.cells:
            table.add_row(*map(Text, row))
        return table

    def _repr_html_(self) -> str:
        """Returns the table for a notebook; no cell is read as markup."""
        lines = [_html_line("th", self.columns, self.numeric)]
        lines += [_html_line("td", row, self.numeric) for row in self.cells]
        return f"<table>{''.join(lines)}</table>"

    def __rich__(self) -> Table:
        return self.ruled()

    def __str__(self) -> str:
        from rich.cells import cell_len  # a wide character takes two columns

        lines = [self.columns, *self.cells]
        widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(self._aligned(line, widths, cell_len)).rstrip() for line in lines)

    def _aligned(self, line: list[str], widths: list[int], length: Any) -> Iterator[str]:
        for text, width, numeric in zip(line, widths, self.numeric, strict=True):
            padding = " " * (width - length(text))
            yield padding + text if numeric else text + padding


def _html_line(tag: str, texts: Sequence[str], numeric: Sequence[bool]) -> str:
    cells = (
        f'<{tag} style="text-align: {"right" if is_number else "left"}">{escape(text)}</{tag}>'
        for text, is_number in zip(texts, numeric, strict=True)
    )
    return f"<tr>{''.join(cells)}</tr>"


def metrics_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> MetricsTable:
    """Returns rows as a table; a row without a column's value has an empty cell.

    Args:
        rows: One dictionary a row.
        columns: The keys to show, in this order; an underscore is shown as a space.
    """
    values = [[row.get(name) for name in columns] for row in rows]
    numeric = [_is_numeric([row[place] for row in values]) for place in range(len(columns))]
    headings = [printable(name.replace("_", " ")) for name in columns]
    return MetricsTable(headings, [[_text(value) for value in row] for row in values], numeric)


def _is_numeric(values: list[Any]) -> bool:
    present = [value for value in values if value is not None]
    return bool(present) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in present)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    return printable(str(value))
