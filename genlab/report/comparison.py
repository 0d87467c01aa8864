"""Runs to one comparison: rows in order, those set apart, the verdict in words, what was left out."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from genlab.report import fairness
from genlab.report.columns import COLUMNS, Cell, Column, chosen, filled, shown
from genlab.report.fairness import Unequal
from genlab.report.gather import gather
from genlab.report.intervals import Difference, difference
from genlab.report.rows import Row, rows_of
from genlab.report.table import MetricsTable, printable

FLOOR = "training split (floor)"
"""The training split scored in place of samples: the best that can be expected."""
_MOST_LINES = 15  # of a verdict: what follows is in the table


@dataclass(frozen=True)
class Comparison:
    """All that a table or a report shows.

    Attributes:
        rows: Rows that may be compared with each other, the lowest FID first.
        apart: The others, each with the fields in which it differs.
        notes: What is left out or not yet there, in sentences.
        ranked: The column by which to rank; None where no ranking was asked for.
    """

    rows: list[Row]
    apart: list[tuple[Row, list[Unequal]]]
    notes: list[str]
    ranked: Column | None = None

    @property
    def all_rows(self) -> list[Row]:
        return [*self.rows, *(row for row, _ in self.apart)]

    @cached_property
    def floor(self) -> dict[str, Cell]:
        """The floor's cells by column key; {} where no run has measured it."""
        cells = {}
        for key in ("fid", "kid", "precision", "recall"):
            values = [value for row in self.rows for value in row.numbers("floor", key)]
            if values:
                cells[key] = Cell(shown(sum(values) / len(values)), sum(values) / len(values))
        return cells

    def against(self, first: Row, second: Row, column: Column) -> Difference | None:
        """Returns how two rows differ in a column; of FID, the ratio. None where one has no such number."""
        a, b = first.numbers(*column.place), second.numbers(*column.place)
        return difference(a, b, logs=column.key == "fid") if a and b else None

    def ranks(self, column: Column) -> list[str]:
        """Returns each row's rank: 1 + the number of rows that are better by an interval; ties share one.

        "" where a row has no number, "?" where one training seed leaves it undecided.
        """
        better = "lower" if column.better == "higher" else "higher"  # how this row looks beside a better one
        ranks = []
        for row in self.rows:
            found = [self.against(row, other, column) for other in self.rows if other is not row]
            outcomes = [difference.outcome for difference in found if difference is not None]
            if not row.numbers(*column.place):
                ranks.append("")
            elif "undecided" in outcomes:
                ranks.append("?")
            else:
                ranks.append(str(1 + outcomes.count(better)))
        return ranks

    def verdict(self) -> list[str]:
        """Returns what the FIDs of the comparable rows say, in sentences."""
        fid = chosen(["fid"])[1]
        scored = [row for row in self.rows if row.numbers(*fid.place)]
        if not scored:
            return ["No comparable row has an FID yet."]
        first, *others = scored
        seeds = len(first.numbers(*fid.place))
        lines = [f"{first.name} has the lowest FID, {fid.cell(first)}{_of_seeds(seeds)}."]
        if seeds == 1:
            lines[0] += " One training seed has no interval: nothing is decided about it."
        compared = [(row, self.against(row, first, fid)) for row in others]
        lines += _ties(first, compared) + _undecided(compared)
        higher = [
            f"{row.name} has {found.value:.2f} times its FID [{found.low:.2f}, {found.high:.2f}]."
            for row, found in compared
            if found is not None
            and found.outcome == "higher"
            and found.low is not None
            and found.high is not None
        ]
        lines += higher[:_MOST_LINES]
        if len(higher) > _MOST_LINES:
            lines.append(f"{len(higher) - _MOST_LINES} further models have a higher FID, too.")
        return lines + self._likelihoods() + self._fastest(first) + self._troubles()

    def _likelihoods(self) -> list[str]:
        bits = chosen(["bits_per_dim"])[1]
        alike: dict[str, list[Row]] = {}  # exact ones and bounds, of the same images
        for row in _in_order([row for row in self.rows if row.numbers(*bits.place)], bits):
            alike.setdefault(str(fairness.facts(row, fairness.LIKELIHOOD)), []).append(row)
        lines = []
        for first, *others in alike.values():
            kind = "an upper bound" if bits.cell(first).sign else "an exact likelihood"
            compared = [(row, self.against(row, first, bits)) for row in others]
            tied = [row.name for row, found in compared if found is not None and found.outcome == "tie"]
            also = f"; tied with it: {', '.join(tied)}" if tied else ""
            lowest = f"{first.name} has the lowest bits/dim, {bits.cell(first)}{also}"
            lines += [f"Of the {1 + len(others)} models with {kind}, {lowest}."] if others else []
        return lines

    def _fastest(self, best: Row) -> list[str]:
        ms = chosen(["ms"])[1]
        timed = [row for row in _in_order(self.rows, ms) if row.numbers(*ms.place)]
        if len(timed) < 2 or len({row.first.hardware for row in timed}) > 1:
            return []
        line = f"{timed[0].name} draws a sample fastest, in {ms.cell(timed[0]).text} ms"
        slower = f"; {best.name} takes {ms.cell(best).text} ms" if best in timed[1:] else ""
        return [f"{line}{slower}."]

    def _troubles(self) -> list[str]:
        troubled = [row for row in self.rows if row.stability.problems and not row.variant]
        lines = []
        for row in troubled:
            num = len(row.numbers("values", "fid"))
            shown_fid = f"its FID is of the {num} that have one" if num else "none of them has an FID"
            lines.append(f"{row.name}: {row.stability} of its trainings; {shown_fid}.")
        return lines


def compare(paths: Sequence[Path], rank: str | None = None) -> Comparison:
    """Reads runs and puts them side by side.

    Args:
        paths: Run folders, folders of experiments, or roots.
        rank: Key of a column to rank by; rows that may not be ranked are then an error.

    Raises:
        ValueError: Nothing was found, or there is no such column to rank by.
        genlab.report.fairness.Incomparable: A ranking was asked for that would be unfair.
    """
    gathered = gather(paths)
    rows, notes = rows_of(gathered.runs)
    column = _rank_column(rank) if rank else chosen(["fid"])[1]
    if rank:
        fairness.require_comparable([row for row in rows if row.numbers(*column.place)], column.scope, rank)
    if not rows and not gathered.runs:
        places = ", ".join(map(str, paths))
        raise ValueError(
            " ".join(
                [f"There are no runs in {places}: genlab fit --config FILE makes one.", *gathered.problems]
            )
        )
    apart = fairness.set_apart(rows)
    fair = [row for place, row in enumerate(rows) if place not in apart]
    others = [(row, apart[place]) for place, row in enumerate(rows) if place in apart]
    return Comparison(_in_order(fair, column), others, gathered.problems + notes, column if rank else None)


def text_table(
    comparison: Comparison, columns: Sequence[Column] | None = None, width: int | None = None
) -> MetricsTable:
    """Returns the comparable rows and the floor as a table for people.

    Args:
        comparison: What to show.
        columns: Which columns; those that hold anything if None.
        width: Characters of a terminal; columns of little importance are dropped until the table fits.
    """
    wanted = list(columns or filled(comparison.rows))
    brief = width is not None  # a terminal has room for more columns if only FID shows its interval
    table = _table(comparison, wanted, brief)
    while columns is None and width is not None and table.width > width and len(wanted) > 2:
        wanted.remove(max(wanted, key=lambda column: column.importance))
        table = _table(comparison, wanted, brief)
    return table


def remarks(comparison: Comparison) -> list[str]:
    """Returns what stands below a table: verdict, what is set apart and why, what is unequal, notes."""
    lines = comparison.verdict()
    lines += [
        f"Not comparable: {row.name} has {', '.join(map(str, fields))}." for row, fields in comparison.apart
    ]
    lines += [
        f"Not held equal: {name} ({values})." for name, values in fairness.not_held_equal(comparison.rows)
    ]
    if any(row.uses_labels for row in comparison.all_rows):
        lines.append("† was trained with labels, which the others did not see.")
    return lines + comparison.notes


def csv_table(comparison: Comparison, columns: Sequence[Column] | None = None) -> str:
    """Returns every row as CSV: a column of numbers has two more, `_low` and `_high`, for its interval.

    `_sign` has ≤ for an upper bound. `comparable` tells the rows that were set apart, `differs` why.
    """
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
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [column.key + part for column in wanted for part in ("", *shapes[column.key])]
    writer.writerow([*heads, *(["rank"] if ranked else []), "comparable", "differs"])
    for cells, rank, comparable, differs in lines:
        exported = [
            text
            for column, cell in zip(wanted, cells, strict=True)
            for text in _exported(cell, shapes[column.key])
        ]
        writer.writerow([*exported, *([rank] if ranked else []), comparable, differs])
    return out.getvalue()


def markdown_table(comparison: Comparison, columns: Sequence[Column] | None = None) -> str:
    """Returns the table and its remarks as Markdown."""
    table = _table(comparison, list(columns or filled(comparison.rows)))
    return (
        "\n\n".join(
            [as_markdown(table), "\n".join(f"- {_markdown_text(line)}" for line in remarks(comparison))]
        )
        + "\n"
    )


def as_markdown(table: MetricsTable) -> str:
    """Returns a table as Markdown; no cell can end its column or become a tag."""
    rule = ["--:" if numeric else ":--" for numeric in table.numeric]
    lines = [
        list(map(_markdown_text, table.columns)),
        rule,
        *(list(map(_markdown_text, row)) for row in table.cells),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _table(comparison: Comparison, columns: list[Column], brief: bool = False) -> MetricsTable:
    cells = [
        [c.cell(row).text if brief and c.is_numeric and c.key != "fid" else str(c.cell(row)) for c in columns]
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


def heading(column: Column, rows: Sequence[Row]) -> str:
    """Returns a column's heading; the number of images is part of a score's name."""
    if column.scope != fairness.SAMPLES or not column.place:
        return column.heading
    for row in rows:
        for entry in row.entries:
            for name in entry["values"]:
                if name.split("@")[0] == column.place[-1] and "@" in name:
                    return f"{column.heading}@{name.split('@', 1)[1]}"
    return column.heading


def _floor_cell(comparison: Comparison, column: Column) -> Cell:
    return Cell(FLOOR) if column.key == "name" else comparison.floor.get(column.key, Cell())


def _shape(column: Column, rows: Sequence[Row]) -> tuple[str, ...]:
    """Returns the further fields that a column needs in a file: the ends of intervals, the sign of bounds."""
    cells = [column.cell(row) for row in rows]
    ends = ("_low", "_high") if any(cell.low is not None for cell in cells) else ()
    return (*ends, "_sign") if any(cell.sign for cell in cells) else ends


def _exported(cell: Cell, shape: tuple[str, ...]) -> list[str]:
    fields = {"_low": cell.low, "_high": cell.high, "_sign": cell.sign}
    value = cell.text if cell.value is None else cell.value
    return [_plain(field) for field in (value, *map(fields.__getitem__, shape))]


def _plain(field: str | float | None) -> str:
    if isinstance(field, float):
        return f"{field:.0f}" if field.is_integer() and abs(field) < 1e15 else repr(field)
    return field or ""


def _in_order(rows: list[Row], column: Column) -> list[Row]:
    def key(row: Row) -> tuple[bool, float]:
        found = row.over_seeds(*column.place)
        sign = -1.0 if column.better == "higher" else 1.0
        return (True, 0.0) if found is None else (False, sign * found.value)

    return sorted(rows, key=key)


def _rank_column(key: str) -> Column:
    column = chosen([key])[-1]
    if not column.place or not column.better:
        rankable = ", ".join(c.key for c in COLUMNS if c.place and c.better)
        raise ValueError(
            f"Rows cannot be ranked by '{key}', which has no better or worse. There are: {rankable}."
        )
    return column


def _ties(first: Row, compared: list[tuple[Row, Difference | None]]) -> list[str]:
    tied = [row.name for row, found in compared if found is not None and found.outcome == "tie"]
    if not tied:
        return []
    return [f"Tied with it (the 95 % interval of the difference of log FID contains 0): {', '.join(tied)}."]


def _undecided(compared: list[tuple[Row, Difference | None]]) -> list[str]:
    open_ = [row.name for row, found in compared if found is not None and found.outcome == "undecided"]
    return [f"Undecided, since one training seed has no interval: {', '.join(open_)}."] if open_ else []


def _of_seeds(num: int) -> str:
    return f" over {num} training seeds" if num > 1 else " of one training seed"


def _markdown_text(text: str) -> str:
    for letter, written in (
        ("\\", "\\\\"),
        ("|", "\\|"),
        ("<", "&lt;"),
        ("`", "\\`"),
        ("[", "\\["),
        ("*", "\\*"),
    ):
        text = text.replace(letter, written)
    return text
