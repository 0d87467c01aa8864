"""Runs to rows: one for each experiment and way to sample, over its training seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from genlab.report.gather import Trained, number, part, score
from genlab.report.intervals import Interval, interval, root_mean_square, spread
from genlab.runs.folder import shown_path
from genlab.runs.headline import SCORES, Headline, headline_of, named
from genlab.runs.metrics_file import short_name
from genlab.runs.settings import settings_of

COLLAPSE_FACTOR = 3.0
"""A run has collapsed when its last score is so many times worse than the best of its evaluations, ..."""
COLLAPSE_RECALL = 0.5
"""... when its last recall is below this share of the best of its own evaluations, ..."""
_ANY_RECALL = 0.1  # who never had more has no modes to lose
COLLAPSE_DUPLICATES = 0.25
"""... or when more than this share of its last samples are near-duplicates of each other."""
LAST_EVALUATIONS = 5
"""The spread of the last evaluations is taken over this many."""


@dataclass(frozen=True)
class Row:
    """One line of the comparison.

    Attributes:
        name: Experiment, and variant after a slash.
        variant: Another way to sample from the same weights; "" for the run's own.
        runs: Every training of the experiment with these settings, one a seed.
        entries: What `genlab test` measured, of those that were tested.
    """

    name: str
    variant: str
    runs: list[Trained]
    entries: list[dict[str, Any]]

    @property
    def first(self) -> Trained:
        return self.runs[0]

    @cached_property
    def budget(self) -> str:
        """The budget of its trainings; where none was declared, what the longest of them used."""
        return max(self.runs, key=lambda trained: number(trained.record.get("examples_seen")) or 0.0).budget

    @property
    def family(self) -> str:
        return self.first.family

    @property
    def uses_labels(self) -> bool:
        return any(trained.record.get("uses_labels") is True for trained in self.runs)

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """The protocol of all entries, {} where nothing was tested; a row has one only."""
        return part(self.entries[0], "protocol") if self.entries else {}

    @cached_property
    def scores(self) -> set[str]:
        """The short names of all scores of its tests."""
        return {short_name(name) for entry in self.entries for name in part(entry, "values")}

    @cached_property
    def headline(self) -> Headline | None:
        """What it leads with on its own; beside others, see `genlab.report.comparison`."""
        return headline_of(self.scores, among=SCORES)

    def numbers(self, *place: str) -> list[float]:
        """Returns one number for each seed that has it; a metric is found by its short name."""
        found = (_lookup(entry, place) for entry in self.entries)
        return [value for value in found if value is not None]

    def over_seeds(self, *place: str) -> Interval | None:
        """Returns a measurement over seeds, None where none has it; FID and its like by their logarithms."""
        values = self.numbers(*place)
        return interval(values, is_logarithmic(place)) if values else None

    def of_record(self, name: str) -> Interval | None:
        """Returns a number of the run's own record over seeds."""
        values = [value for t in self.runs if (value := number(t.record.get(name))) is not None]
        return interval(values) if values else None

    @cached_property
    def sampling_noise(self) -> float | None:
        """Standard error of one model's FID for its finite number of samples; not the spread over seeds."""
        values = self.numbers("values", "fid_std")
        return root_mean_square(values) if values else None

    @cached_property
    def stability(self) -> Stability:
        return Stability.of(self.runs)


@dataclass(frozen=True)
class Stability:
    """How the trainings of a row ended, and how their evaluations moved.

    Attributes:
        num: Trainings that ended.
        problems: How many of them, by what happened: collapsed, diverged, failed.
        best: Mean over seeds of the best headline of a run's own evaluations; geometric for FID and its like.
        last: The same of the last evaluation.
        wobble: Standard deviation of the headline over a run's last evaluations, of its logarithm for FID and
            its like; root mean square over seeds.
        headline: The score that these numbers are of, None where nothing was scored during training.
    """

    num: int
    problems: dict[str, int]
    best: Interval | None
    last: Interval | None
    wobble: float | None
    headline: Headline | None = None

    @classmethod
    def of(cls, runs: Sequence[Trained]) -> Stability:
        """Returns the stability of some trainings; those that still run do not count."""
        ended = [trained for trained in runs if trained.status not in ("running", "created")]
        ends = [how_it_ended(trained) for trained in ended]
        problems: dict[str, int] = {
            kind: ends.count(kind) for kind in ("collapsed", "diverged", "failed") if kind in ends
        }
        curves = [curve for trained in ended if (curve := [e.score for e in trained.evaluations])]
        headline = next((e.headline for trained in ended for e in trained.evaluations), None)
        if headline is None:
            return cls(len(ended), problems, None, None, None)
        logs = headline.is_logarithmic
        spreads = [s for curve in curves if (s := spread(curve[-LAST_EVALUATIONS:], logs)) is not None]
        return cls(
            len(ended),
            problems,
            interval([headline.best(curve) for curve in curves], logs),
            interval([curve[-1] for curve in curves], logs),
            root_mean_square(spreads) if spreads else None,
            headline,
        )

    def __str__(self) -> str:
        sound = self.num - sum(self.problems.values())
        return ", ".join([f"{sound}/{self.num}", *(f"{n} {kind}" for kind, n in self.problems.items())])


def how_it_ended(trained: Trained) -> str:
    """Returns "collapsed", "diverged", "failed" or "sound", by the run's status and its own evaluations."""
    if trained.status in ("diverged", "failed"):
        return trained.status
    return "collapsed" if collapse(trained) else "sound"


def collapse(trained: Trained) -> str:
    """Returns what says that a run collapsed, "" where nothing does; see the constants of this file."""
    worse = _fallen(trained)
    if worse:
        return worse
    trend = [signs for signs in _list(part(trained.record, "health").get("trend")) if isinstance(signs, dict)]
    if not trend:
        return ""
    recalls = [value for signs in trend if (value := number(signs.get("recall"))) is not None]
    if max(recalls, default=0.0) >= _ANY_RECALL and recalls[-1] < COLLAPSE_RECALL * max(recalls):
        return f"recall fell to {recalls[-1]:.2f} from {max(recalls):.2f}"
    duplicates = number(trend[-1].get("duplicates"))
    if duplicates is not None and duplicates > COLLAPSE_DUPLICATES:
        return f"{duplicates:.0%} of the last samples are near-duplicates of each other"
    return ""


def _fallen(trained: Trained) -> str:
    curve = [evaluation.score for evaluation in trained.evaluations]
    if not curve:
        return ""
    headline = trained.evaluations[-1].headline
    best, last = headline.best(curve), curve[-1]
    times = headline.times_worse(last, best)
    if times <= COLLAPSE_FACTOR:
        return ""
    if headline.lower_is_better:
        return f"the last {headline.title}, {last:.3g}, is {times:.1f} times the best of the run"
    return f"the last {headline.title}, {last:.3g}, has fallen from {best:.3g}"


def rows_of(runs: Iterable[Trained]) -> tuple[list[Row], list[str]]:
    """Groups runs by experiment, settings but for the seed, and way to sample.

    Returns:
        The rows, in the order of their first runs, and sentences about what is not in them.
    """
    rows: list[Row] = []
    notes: list[str] = []
    for trainings in _grouped(runs, _training_key).values():
        kept, dropped = one_a_seed(trainings)
        notes += dropped + _unfinished(kept)
        rows += _rows_of_one_training(kept)
    return _told_apart(rows), notes


def one_a_seed(runs: Sequence[Trained]) -> tuple[list[Trained], list[str]]:
    """Returns the newest training of each seed that has a result, and says so where there are others.

    Two trainings of one seed are not independent. The newest counts, not the best.
    """
    kept, notes = [], []
    for seed, same in _grouped(runs, lambda trained: trained.seed).items():
        if seed is None:
            kept += same
            continue
        *others, newest = sorted(same, key=_by_result_and_age)
        kept.append(newest)
        place = shown_path(newest.run.path)
        notes += [
            f"{shown_path(other.run.path)} ({other.status}) has seed {seed} like {place}, which counts."
            for other in others
        ]
    return sorted(kept, key=lambda trained: (str(trained.seed).zfill(9), trained.run.name)), notes


def _by_result_and_age(trained: Trained) -> tuple[bool, str]:
    has_result = bool(trained.variants) or trained.status == "diverged"
    return has_result, str(trained.record.get("created", ""))


def settings_that_differ(first: Trained, second: Trained) -> list[str]:
    """Returns the keys in which two configurations differ, the training seed aside, as `a.b.c`."""
    import yaml

    try:
        flat = [_flattened(settings_of(trained.config)) for trained in (first, second)]
    except yaml.YAMLError:
        return ["settings"]
    keys = dict.fromkeys([*flat[0], *flat[1]])
    return [key for key in keys if flat[0].get(key) != flat[1].get(key)]


def _training_key(trained: Trained) -> tuple[Any, ...]:
    # What a seed used is no setting: where no budget ends them, one stops early, and another diverges.
    data = part(trained.record, "data", "fingerprints").get("train")
    machine = trained.hardware if trained.is_timed else ""
    stage = trained.first_stage
    of_stage = str(stage.get("settings_digest") or stage.get("experiment", ""))
    what = trained.experiment, trained.family, trained.settings_digest, of_stage
    return *what, trained.declared_budget, machine, str(data)


def _rows_of_one_training(runs: list[Trained]) -> list[Row]:
    tested = [(variant, trained.entry(variant)) for trained in runs for variant in trained.variants]
    groups = _grouped(tested, lambda pair: (pair[0], json.dumps(part(pair[1], "protocol"), sort_keys=True)))
    rows = [_row(runs, variant, [entry for _, entry in pairs]) for (variant, _), pairs in groups.items()]
    if not tested and any(trained.status == "diverged" for trained in runs):
        return [_row(runs, "", [])]  # a seed that diverged is a result
    return sorted(rows, key=lambda row: row.variant != "")


def _row(runs: list[Trained], variant: str, entries: list[dict[str, Any]]) -> Row:
    experiment = runs[0].experiment
    return Row(f"{experiment}/{variant}" if variant else experiment, variant, runs, entries)


def _unfinished(runs: Sequence[Trained]) -> list[str]:
    notes = []
    for trained in runs:
        if trained.status in ("running", "created"):
            notes.append(f"{trained.name} is still training and does not count yet.")
        elif not trained.variants and trained.status != "diverged":
            notes.append(f"{trained.name} has not been tested: genlab test {shown_path(trained.run.path)}")
    return notes


def _told_apart(rows: list[Row]) -> list[Row]:
    """Adds to rows of one name the field that tells them apart."""
    named = []
    for same in _grouped(rows, lambda row: row.name).values():
        for place, row in enumerate(same):
            other = same[0] if place else same[-1]
            named.append(
                row if len(same) == 1 else replace(row, name=f"{row.name} [{_mark(row, other, place)}]")
            )
    order = {id(row.runs): place for place, row in enumerate(rows)}
    return sorted(named, key=lambda row: order[id(row.runs)])


def _mark(row: Row, other: Row, place: int) -> str:
    if row.budget != other.budget:
        return row.budget
    if row.first.is_timed and row.first.hardware != other.first.hardware:
        return row.first.hardware
    for field, value in row.protocol.items():
        if other.protocol.get(field) != value and isinstance(value, str | int | float):
            return f"{field} {value}"
    keys = settings_that_differ(row.first, other.first)
    return f"{keys[0].rsplit('.', 1)[-1]} differs, {place + 1}" if keys else f"{place + 1}"


def is_logarithmic(place: Sequence[str]) -> bool:
    """Returns whether a measurement is averaged and compared by its logarithms."""
    return place[0] in ("values", "floor") and named(place[-1]).is_logarithmic


def _lookup(entry: dict[str, Any], place: tuple[str, ...]) -> float | None:
    inside = part(entry, *place[:-1])
    if place[0] in ("values", "floor"):
        found = score(inside, place[-1])
        return found[1] if found else None
    return number(inside.get(place[-1]))


def _grouped(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        k: v
        for name, inner in value.items()
        for k, v in _flattened(inner, f"{prefix}.{name}".strip(".")).items()
    }


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
