"""The numbers behind the charts: the score of every row against time, examples, steps and speed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from genlab.files import parse_json
from genlab.report import fairness
from genlab.report.comparison import Comparison
from genlab.report.gather import Evaluation, number, part, score
from genlab.report.intervals import Interval, interval
from genlab.report.rows import Row, how_it_ended
from genlab.runs.folder import Run
from genlab.runs.headline import Headline


class Point(NamedTuple):
    """A point with the ends of its interval, None where there is none."""

    x: float
    y: float
    low: float | None
    high: float | None


class Series(NamedTuple):
    """The points of one model; `place` chooses colour, mark and dash."""

    label: str
    place: int
    points: list[Point]

    @property
    def bounded(self) -> list[tuple[float, float, float]]:
        """x, low and high of the points that have an interval."""
        return [(p.x, p.low, p.high) for p in self.points if p.low is not None and p.high is not None]


class End(NamedTuple):
    """How one training ended, with the last and the best of its own evaluations."""

    seed: str
    ended: str
    last: float
    best: float


# Rows


def trainings(comparison: Comparison) -> list[Row]:
    """Returns one row for each training: variants share it."""
    kept: dict[Path, Row] = {}
    for row in comparison.all_rows:
        known = kept.get(row.first.run.path)
        if known is None or known.variant:
            kept[row.first.run.path] = row
    return list(kept.values())


Places = dict[Path, int]
"""A number for each training, which has the same colour in every chart."""


def place_of(comparison: Comparison) -> Places:
    """Returns the places of all trainings, in the order of their rows."""
    paths = dict.fromkeys(row.first.run.path for row in comparison.all_rows)
    return {path: place for place, path in enumerate(paths)}


def short_names(rows: Sequence[Row]) -> list[str]:
    """Returns the names without the ending that all experiments share, such as `_digits`."""
    experiments = [row.first.experiment for row in rows]
    endings = {name.rpartition("_")[2] for name in experiments}
    ending = f"_{endings.pop()}" if len(endings) == 1 and len(set(experiments)) > 1 else ""
    short = {name: name.removesuffix(ending) or name for name in experiments}
    return [row.name.replace(row.first.experiment, short[row.first.experiment], 1) for row in rows]


def by_evaluations(comparison: Comparison) -> dict[Headline, list[Row]]:
    """Returns the trainings by the score of their own evaluations; those without any are in their group."""
    of_group = {
        id(row): group.headline for group in comparison.groups for row in (*group.rows, *group.own_apart)
    }
    found: dict[Headline, list[Row]] = {}
    for row in trainings(comparison):
        found.setdefault(row.stability.headline or of_group[id(row)], []).append(row)
    return found


def scored(group: Comparison) -> list[tuple[Row, Interval]]:
    """Returns the comparable rows that have the headline's score, with its interval over seeds."""
    rows = [(row, row.over_seeds(*group.column.place)) for row in group.rows]
    return [(row, found) for row, found in rows if found and can_be_drawn(found.value, group.headline)]


def can_be_drawn(value: float, headline: Headline) -> bool:
    """Returns whether a score has a place on its axis, as 0 has none among logarithms."""
    return value > 0 or not headline.is_logarithmic


# Against speed


def with_speed(group: Comparison) -> list[tuple[Row, float, Interval]]:
    """Returns the rows with a score that were timed on one device, with the milliseconds and the score."""
    rows = [(row, row.over_seeds("speed", "ms_per_sample"), found) for row, found in scored(group)]
    timed = [(row, ms.value, found) for row, ms, found in rows if ms and ms.value > 0]
    alike = {id(row) for row in fairness.same_speed_place([row for row, _, _ in timed])}
    return [one for one in timed if id(one[0]) in alike]


def frontier(points: Sequence[tuple[float, float]], headline: Headline) -> list[int]:
    """Returns the places of the points that no other one beats in both numbers, from left to right.

    Args:
        points: What is the better the lower, and a score.
        headline: What the score is.
    """
    costs = [(x, headline.cost(y)) for x, y in points]
    kept: list[int] = []
    for place in sorted(range(len(points)), key=costs.__getitem__):
        if not kept or costs[place][1] < costs[kept[-1]][1]:
            kept.append(place)
    return kept


# Against steps


def by_sampler(group: Comparison) -> list[Series]:
    """Returns score against network evaluations of one sample, for weights sampled in several ways."""
    found: dict[str, dict[float, Point]] = {}
    for name, point in [*_of_rows(group), *_of_speed_files(group)]:
        found.setdefault(name, {}).setdefault(point.x, point)  # a row's has an interval and comes first
    ways = Counter(name.partition("/")[0] for name, points in found.items() for _ in points)
    several = {name: points for name, points in found.items() if ways[name.partition("/")[0]] > 1}
    return [Series(name, place, sorted(several[name].values())) for place, name in enumerate(several)]


def _of_rows(group: Comparison) -> Iterator[tuple[str, Point]]:
    names = _names(group)
    for row, found in scored(group):
        nfe = row.over_seeds("speed", "nfe")
        if nfe and nfe.value > 0:
            yield _sampler(names[row.name]), Point(nfe.value, found.value, found.low, found.high)


def _of_speed_files(group: Comparison) -> Iterator[tuple[str, Point]]:
    names = _names(group)
    for row in group.rows:
        for line in _speed_lines(row):
            if point := _speed_point(line, group.headline):
                yield f"{names[row.name]}/{str(line.get('sampler', '')).lower()}", point


def _names(group: Comparison) -> dict[str, str]:
    return dict(zip((row.name for row in group.rows), short_names(group.rows), strict=True))


def _sampler(name: str) -> str:
    """Returns a row's name without the number at its end: ddpm/ddim-10 and ddpm/ddim-50 are one sampler."""
    return re.sub(r"(?<=/)(.*?)[-_ ]?\d+$", r"\1", name).rstrip("/") or name


def _speed_lines(row: Row) -> list[dict[str, Any]]:
    """Returns what `genlab speed` wrote of a row's weights, if its protocol is the row's."""
    held = {} if row.variant else _speed_file(row.first.run)
    if not fairness.is_scored_alike(row, part(held, "protocol")):
        return []
    lines = held.get("points") or held.get("rows")
    return [line for line in lines if isinstance(line, dict)] if isinstance(lines, list) else []


def _speed_file(run: Run) -> dict[str, Any]:
    for place in (("speed", "speed.json"), ("speed.json",)):
        with suppress(OSError, ValueError):
            return part(parse_json(run.inside(*place).read_bytes()))
    return {}


def _speed_point(line: dict[str, Any], headline: Headline) -> Point | None:
    found = score({str(line.get("metric")): line.get("value"), **line}, headline.key)
    passes = number(line.get("passes", line.get("nfe")))
    if not found or not passes or passes <= 0 or not can_be_drawn(found[1], headline):
        return None
    return Point(passes, found[1], None, None)


# Through training


def ends(row: Row, headline: Headline) -> list[End]:
    """Returns how each training of a row ended, of those that were evaluated."""
    found = [(t, [y for _, y in _curve(t.evaluations, headline)]) for t in row.runs]
    return [
        End(str(t.seed), how_it_ended(t), values[-1], headline.best(values)) for t, values in found if values
    ]


def over_seeds(row: Row, headline: Headline, where: Callable[[Evaluation], float]) -> list[Point]:
    """Returns x, mean, lowest and highest score of the n-th evaluation of all seeds that reached it."""
    curves = [_curve(trained.evaluations, headline) for trained in row.runs]
    return [
        _mean([curve[place] for curve in curves if len(curve) > place], headline, where)
        for place in range(max(map(len, curves), default=0))
    ]


def _curve(evaluations: Sequence[Evaluation], headline: Headline) -> list[tuple[Evaluation, float]]:
    found = [(e, e.values.get(headline.key)) for e in evaluations]
    return [(e, value) for e, value in found if value is not None and can_be_drawn(value, headline)]


def _mean(
    reached: list[tuple[Evaluation, float]], headline: Headline, where: Callable[[Evaluation], float]
) -> Point:
    values = [value for _, value in reached]
    mean = interval(values, headline.is_logarithmic).value
    return Point(fmean(where(e) for e, _ in reached), mean, min(values), max(values))
