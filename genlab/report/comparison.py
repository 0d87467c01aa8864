"""Runs to one comparison: rows in order, those set apart, what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from genlab.report import fairness
from genlab.report.columns import COLUMNS, Cell, Column, chosen, shown
from genlab.report.fairness import Group, Unequal
from genlab.report.gather import gather
from genlab.report.intervals import Difference, difference, told_apart
from genlab.report.rows import Row, is_logarithmic, rows_of
from genlab.report.search import unended
from genlab.runs.headline import SCORES, Headline

FLOOR = "training split (floor)"
"""The training split scored in place of samples: the best that can be expected."""

FLOOR_OF_TEXT = "unseen text (floor)"
"""Unseen text in place of samples, whose copies of the training text nobody made."""

_MIRRORED = {"lower": "higher", "higher": "lower"}


class Pair(NamedTuple):
    """Two rows and how the later one differs from the earlier one; None where either has no number."""

    earlier: Row
    later: Row
    found: Difference | None


@dataclass(frozen=True)
class Comparison:
    """All that a table or a report shows.

    Attributes:
        rows: Rows that may be compared with each other, the best first.
        apart: The others, each with the fields in which it differs.
        notes: What is left out or not yet there, in sentences.
        ranked: The column by which to rank; None where no ranking was asked for.
        headline: The score that the rows share, which they are compared by.
        beside: Those of the others that share another score, compared by that.
        sweeps: The folders of the sweeps whose trials were met.
    """

    rows: list[Row]
    apart: list[tuple[Row, list[Unequal]]]
    notes: list[str]
    ranked: Column | None = None
    headline: Headline = SCORES[0]
    beside: list[Comparison] = field(default_factory=list)
    sweeps: list[Path] = field(default_factory=list)

    @property
    def groups(self) -> list[Comparison]:
        """This comparison and those beside it: each row is compared in one of them, or in none."""
        return [self, *self.beside]

    @property
    def column(self) -> Column:
        """The headline's column."""
        return chosen([self.headline.key])[1]

    @property
    def own_apart(self) -> list[Row]:
        """The rows that are set apart and have no group beside this one."""
        elsewhere = {id(row) for group in self.beside for row in group.all_rows}
        return [row for row, _ in self.apart if id(row) not in elsewhere]

    @property
    def uncompared(self) -> list[tuple[Row, list[Unequal]]]:
        """The rows that are set apart from every group, each with the fields in which it differs."""
        compared = {id(row) for group in self.beside for row in group.rows}
        return [(row, fields) for row, fields in self.apart if id(row) not in compared]

    @property
    def all_rows(self) -> list[Row]:
        return [*self.rows, *(row for row, _ in self.apart)]

    @property
    def is_of_sweeps_alone(self) -> bool:
        """Whether all that there is to show is what sweeps have found."""
        return bool(self.sweeps) and not self.all_rows

    @cached_property
    def floor(self) -> dict[str, Cell]:
        """The floor's cells by column key; {} where no run has measured it."""
        cells = {}
        for column in COLUMNS:
            if column.scope != fairness.SAMPLES or not column.place:
                continue
            values = [value for row in self.rows for value in row.numbers("floor", column.place[-1])]
            if values:
                cells[column.key] = Cell(shown(fmean(values)), fmean(values))
        copied = [100 * share for row in self.rows for share in row.numbers("copies", "test_share")]
        return {**cells, "copies": Cell(shown(fmean(copied)), fmean(copied))} if copied else cells

    @property
    def floor_name(self) -> str:
        """What the floor is of."""
        return FLOOR_OF_TEXT if self.floor.keys() == {"copies"} else FLOOR

    def against(self, first: Row, second: Row, column: Column) -> Difference | None:
        """Returns how two rows differ in a column, of FID and its like the ratio; None where one is empty."""
        a, b = first.numbers(*column.place), second.numbers(*column.place)
        return difference(a, b, logs=is_logarithmic(column.place)) if a and b else None

    def pairs(self, rows: Sequence[Row], column: Column) -> list[Pair]:
        """Returns how the later of each two rows differs from the earlier one, all pairs tested together.

        Holm's correction is for the number of all pairs, also where only those with the best row are told:
        which row is the best was found on the same seeds.
        """
        two = list(combinations(rows, 2))
        found = told_apart([self.against(later, earlier, column) for earlier, later in two])
        return [Pair(*rows, one) for rows, one in zip(two, found, strict=True)]

    def ranks(self, column: Column) -> list[str]:
        """Returns each row's rank: 1 + the number of rows that are better; ties share one; see `pairs`.

        "" where a row has no number, "?" where one training seed leaves it undecided.
        """
        better = "lower" if column.better == "higher" else "higher"  # how this row looks beside a better one
        seen: dict[int, list[str]] = {id(row): [] for row in self.rows}
        for earlier, later, found in self.pairs(self.rows, column):
            if found is not None:
                seen[id(later)].append(found.outcome)
                seen[id(earlier)].append(_MIRRORED.get(found.outcome, found.outcome))
        ranks = []
        for row, outcomes in zip(self.rows, seen.values(), strict=True):
            if not row.numbers(*column.place):
                ranks.append("")
            elif "undecided" in outcomes:
                ranks.append("?")
            else:
                ranks.append(str(1 + outcomes.count(better)))
        return ranks


def compare(paths: Sequence[Path], rank: str | None = None, tagged: Sequence[str] = ()) -> Comparison:
    """Reads runs and puts them side by side.

    Args:
        paths: Run folders, folders of experiments, or roots.
        rank: Key of a column to rank by; rows that may not be ranked are then an error.
        tagged: Only runs with all of these tags.

    Raises:
        ValueError: Nothing was found, or there is no such column to rank by.
        genlab.report.fairness.Incomparable: A ranking was asked for that would be unfair.
    """
    gathered = gather(paths, tagged)
    trials = [trained for trained in gathered.runs if trained.sweep and not trained.variants]
    sweeps = list(dict.fromkeys(filter(None, (trial.sweep for trial in trials))))
    rows, notes = rows_of([trained for trained in gathered.runs if trained not in trials])
    notes += unended(sweeps)
    if not rows and not gathered.runs:
        places = ", ".join(map(str, paths))
        if tagged:
            raise ValueError(f"No run in {places} has the tags {', '.join(tagged)}: genlab runs lists them.")
        told = [f"There are no runs in {places}: genlab fit --config FILE makes one.", *gathered.problems]
        raise ValueError(" ".join(told))
    ranked = _rank_column(rank) if rank else None
    if ranked is not None:
        fairness.require_comparable(
            [row for row in rows if row.numbers(*ranked.place)], ranked.scope, ranked.key
        )
    groups = fairness.by_headline(rows)
    if ranked is not None:  # stable: of groups that have the number equally often, the larger one
        groups.sort(key=lambda group: -sum(bool(row.numbers(*ranked.place)) for row in group.rows))
    first, *others = (_compared(group, ranked) for group in groups)
    apart = [*first.apart, *(line for other in others for line in _apart_from(first, other))]
    return replace(first, apart=apart, notes=gathered.problems + notes, beside=others, sweeps=sweeps)


def _compared(group: Group, ranked: Column | None) -> Comparison:
    headline = group.headline or SCORES[0]
    column = chosen([headline.key])[1]
    apart = fairness.set_apart(group.rows, column.scope)
    fair = [row for place, row in enumerate(group.rows) if place not in apart]
    others = [(group.rows[place], fields) for place, fields in apart.items()]
    return Comparison(in_order(fair, ranked or column), others, [], ranked, headline)


def _apart_from(first: Comparison, other: Comparison) -> list[tuple[Row, list[Unequal]]]:
    field = Unequal("score", other.headline.title, first.headline.title)
    return [*((row, [field]) for row in other.rows), *other.apart]


def in_order(rows: list[Row], column: Column) -> list[Row]:
    """Returns the rows with the best in a column first, those without a number last."""

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
