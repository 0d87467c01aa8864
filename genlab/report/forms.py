"""A comparison as a table for people, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from genlab.report.columns import Cell, Column, filled, heading
from genlab.report.comparison import Comparison
from genlab.report.rows import Row
from genlab.report.table import MetricsTable
from genlab.report.verdict import remarks
from genlab.text import printable


def text_table(
    comparison: Comparison, columns: Sequence[Column] | None = None, width: int | None = None
) -> MetricsTable:
    """Returns the comparable rows and the floor as a table for people; see `groups` for those beside them.

    Args:
        comparison: What to show.
        columns: Which columns; those that hold anything if None.
        width: Characters of a terminal; columns of little importance are dropped until the table fits.
    """
    wanted = list(columns or filled(comparison.rows))
    brief = width is not None  # a terminal has room for more columns if only the headline shows its interval
    table = _table(comparison, wanted, brief)
    kept = (wanted[0], comparison.column)
    while columns is None and width is not None and table.width > width and len(wanted) > 2:
        wanted.remove(max((c for c in wanted if c not in kept), key=lambda column: column.importance))
        table = _table(comparison, wanted, brief)
    return table


def groups(
    comparison: Comparison, columns: Sequence[Column] | None = None
) -> list[tuple[Comparison, list[Column] | None]]:
    """Returns every comparison that has rows, each with its columns.

    Columns that were asked for are all shown of the first group, of the others those that they have anything
    in, led by what they are compared by.
    """
    made: list[tuple[Comparison, list[Column] | None]] = []
    for group in comparison.groups:
        if not group.rows:
            continue
        wanted = list(columns) if columns else None
        if wanted and group is not comparison:
            wanted = [wanted[0], group.column, *(c for c in wanted[1:] if c is not group.column)]
            wanted = [c for c in wanted if any(c.cell(row).text for row in group.rows)]
        made.append((group, wanted))
    return made


def csv_table(comparison: Comparison, columns: Sequence[Column] | None = None) -> str:
    """Returns every row as CSV; see `records`."""
    names, rows = _fields(comparison, columns)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow(printable(_plain(field)) for field in row)
    return out.getvalue()


def records(
    comparison: Comparison, columns: Sequence[Column] | None = None
) -> list[dict[str, str | float | None]]:
    """Returns every row by the columns' keys: numbers as numbers, None for what a row does not have.

    A column of numbers has two more, `_low` and `_high`, for its interval. `_sign` has ≤ for an upper bound.
    `comparable` tells the rows that were set apart, `differs` why.
    """
    names, rows = _fields(comparison, columns)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _fields(
    comparison: Comparison, columns: Sequence[Column] | None
) -> tuple[list[str], list[list[str | float | None]]]:
    """Returns the names of all fields, and each row's."""
    wanted = list(columns or filled(comparison.all_rows))
    shapes = {column.key: _shape(column, comparison.all_rows) for column in wanted}
    ranked = comparison.ranked
    ranks = comparison.ranks(ranked) if ranked else [""] * len(comparison.rows)
    lines = [
        ([column.cell(row) for column in wanted], rank, "yes", "")
        for row, rank in zip(comparison.rows, ranks, strict=True)
    ]
    for row, fields in comparison.apart:
        lines.append(([column.cell(row) for column in wanted], "", "no", "; ".join(map(str, fields))))
    if comparison.floor:
        lines.append(([_floor_cell(comparison, column) for column in wanted], "", "floor", ""))
    names = [column.key + part for column in wanted for part in ("", *shapes[column.key])]
    rows = [
        [
            *(
                field
                for c, cell in zip(wanted, cells, strict=True)
                for field in _exported(cell, shapes[c.key])
            ),
            *([rank or None] if ranked else []),
            *(comparable, differs or None),
        ]
        for cells, rank, comparable, differs in lines
    ]
    return [*names, *(["rank"] if ranked else []), "comparable", "differs"], rows


def markdown_table(
    comparison: Comparison,
    columns: Sequence[Column] | None = None,
    told: Sequence[str] | None = None,
    first: Sequence[str] = (),
) -> str:
    """Returns a table of each group between sentences, as Markdown.

    Args:
        comparison: What to show.
        columns: Which columns; those that hold anything if None.
        told: Sentences below; all remarks if None.
        first: Sentences above, for those who read no table.
    """
    tables = [as_markdown(text_table(*group)) for group in groups(comparison, columns)]
    below = remarks(comparison) if told is None else told
    return "\n\n".join(filter(None, [_sentences(first), *tables, _sentences(below)])) + "\n"


def _sentences(lines: Sequence[str]) -> str:
    return "\n".join(f"- {markdown_text(line)}" for line in lines)


def as_markdown(table: MetricsTable) -> str:
    """Returns a table as Markdown; no cell can end its column, become a tag or command a terminal."""
    rule = ["--:" if numeric else ":--" for numeric in table.numeric]
    lines = [
        list(map(markdown_text, table.columns)),
        rule,
        *(list(map(markdown_text, row)) for row in table.cells),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _table(comparison: Comparison, columns: list[Column], brief: bool = False) -> MetricsTable:
    short = [brief and column.is_numeric and column is not comparison.column for column in columns]
    cells = [
        [
            c.cell(row).text if is_short else str(c.cell(row))
            for c, is_short in zip(columns, short, strict=True)
        ]
        for row in comparison.rows
    ]
    if comparison.floor and any(column.key in comparison.floor for column in columns):
        cells.append([str(_floor_cell(comparison, column)) for column in columns])
    headings = [heading(column, comparison.rows) for column in columns]
    numeric = [column.is_numeric for column in columns]
    if comparison.ranked:
        ranks = comparison.ranks(comparison.ranked) + [""] * (len(cells) - len(comparison.rows))
        cells = [[rank, *row] for rank, row in zip(ranks, cells, strict=True)]
        headings, numeric = [f"rank ({comparison.ranked.key})", *headings], [True, *numeric]
    return MetricsTable(
        [printable(text) for text in headings], [list(map(printable, row)) for row in cells], numeric
    )


def _floor_cell(comparison: Comparison, column: Column) -> Cell:
    return Cell(comparison.floor_name) if column.key == "name" else comparison.floor.get(column.key, Cell())


def _shape(column: Column, rows: Sequence[Row]) -> tuple[str, ...]:
    """Returns the further fields that a column needs in a file: the ends of intervals, the sign of bounds."""
    cells = [column.cell(row) for row in rows]
    ends = ("_low", "_high") if any(cell.low is not None for cell in cells) else ()
    return (*ends, "_sign") if any(cell.sign for cell in cells) else ends


def _exported(cell: Cell, shape: tuple[str, ...]) -> list[str | float | None]:
    fields = {"_low": cell.low, "_high": cell.high, "_sign": cell.sign or None}
    value = (cell.text or None) if cell.value is None else cell.value
    return [value, *map(fields.__getitem__, shape)]


def _plain(field: str | float | None) -> str:
    if isinstance(field, float):
        return f"{field:.0f}" if field.is_integer() and abs(field) < 1e15 else repr(field)
    return field or ""


def markdown_text(text: str) -> str:
    """Returns anybody's text for the middle of a line of Markdown, where it is shown as it is.

    It ends no cell, becomes neither tag nor link nor picture nor formula, and commands no terminal.
    """
    text = re.sub(r"[\\|`\[*~$]", r"\\\g<0>", printable(text).replace("&", "&amp;").replace("<", "&lt;"))
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # one inside of a word is no emphasis
    return re.sub(r"(?<=www)\.|:(?=//)", lambda sign: f"&#{ord(sign[0])};", text)
