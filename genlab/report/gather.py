"""Finds the runs below some folders and reads what a comparison needs of each, and nothing more."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from genlab.files import digest, parse_json
from genlab.report.units import unit_of
from genlab.runs.folder import NotARun, Run, open_run, shown_path
from genlab.runs.headline import SCORES, Headline, headline_of, named
from genlab.runs.metrics_file import short_name
from genlab.runs.selection import Described
from genlab.runs.settings import facts_of

_SIGNS_OF_A_RUN = ("run.json", "config.yaml", "metrics.jsonl", "environment.json", "checkpoints")
_READ = ("config.yaml", "environment.json", "metrics.jsonl", "samples", "speed")
_DEPTH = 3  # a root of benches holds benches of experiments of runs


@dataclass(frozen=True)
class Evaluation:
    """One evaluation during training.

    Attributes:
        examples_seen: When, on the axis that families share.
        seconds: When, in seconds of training alone.
        values: All finite scores by their short names.
        headline: The score that the run leads with.
    """

    examples_seen: int
    seconds: float
    values: dict[str, float]
    headline: Headline

    @property
    def score(self) -> float:
        """The headline's value."""
        return self.values[self.headline.key]


@dataclass(frozen=True)
class Trained(Described):
    """One training, as its folder tells it."""

    @property
    def seed(self) -> Any:
        return self.record.get("seed")

    @property
    def name(self) -> str:
        return f"{self.experiment}/{self.run.name}"

    @cached_property
    def sweep(self) -> Path | None:
        """The folder of the sweep whose trial it is, None for every other training."""
        above = self.run.path.parents
        is_trial = len(above) > 2 and above[1].name == "trials" and (above[2] / "sweep.json").is_file()
        return above[2] if is_trial else None

    @cached_property
    def config(self) -> str:
        """The resolved configuration as text, empty where there is none."""
        try:
            return self.run.config.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, machine and command line; {} where they cannot be read."""
        try:
            return part(parse_json(self.run.environment.read_bytes()))
        except (OSError, ValueError):
            return {}

    @cached_property
    def settings_digest(self) -> str:
        """A digest of what all seeds of a row have in common."""
        stored = self.record.get("settings_digest")
        if self.first_stage and "settings_digest" not in self.first_stage:
            stored = None  # made when the folder of the first stage still was a setting
        return str(stored or self._facts.get("settings_digest", ""))

    @property
    def first_stage(self) -> dict[str, Any]:
        """What the record says of the first stage that the model stands on, {} of a model of its own."""
        return part(self.record, "first_stage")

    @cached_property
    def unit(self) -> tuple[str, str]:
        """What examples are, as a column's heading says it and in words; see `unit_of`."""
        return unit_of(part(self.record, "spec"))

    @cached_property
    def budget(self) -> str:
        """What the training was allowed, in words: of its bench, else its own, else what it used."""
        return self.declared_budget or self._in_words(number(self.record.get("examples_seen")))

    @cached_property
    def declared_budget(self) -> str:
        """What the training was allowed, in words: of its bench, else its own; "" where nothing ends it."""
        seconds, examples = number(self._budget.get("seconds")), number(self._budget.get("examples"))
        words = ["" if seconds is None else f"{seconds:g} s", self._in_words(examples)]
        return " or ".join(filter(None, words))

    def _in_words(self, examples: float | None) -> str:
        return "" if examples is None else f"{examples:,.0f} {self.unit[1]}"

    @property
    def is_timed(self) -> bool:
        """Whether the budget holds seconds, which buy more on a faster machine."""
        return number(self._budget.get("seconds")) is not None

    @cached_property
    def _budget(self) -> dict[str, Any]:
        found = part(self.record, "bench", "budget") or part(self.record, "budget")
        return found or part(self._facts, "budget")

    @cached_property
    def _facts(self) -> dict[str, Any]:
        """What today's records hold, of a run that was trained before they did."""
        import yaml

        try:
            return facts_of(self.config)
        except yaml.YAMLError:
            return {"settings_digest": digest(self.config)}

    @property
    def hardware(self) -> str:
        """What it was trained on, with whatever changes its speed."""
        record, threads = self.record, self.record.get("threads")
        words = [f"{record.get('num_devices', 1)} x {record.get('device', 'unknown device')}"]
        words += [f"{threads} thread{'s' if threads != 1 else ''}"] if threads is not None else []
        words += [str(record["precision"])] if "precision" in record else []
        return ", ".join([*words, *(["compiled"] if record.get("compiled") else [])])

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """Every evaluation during training that has the run's headline, in order."""
        try:
            lines = self.run.metrics_jsonl.read_bytes().split(b"\n")
        except OSError:
            return []
        found = [row for line in lines if b'"val/' in line and (row := _row(line))]  # most hold losses only
        names = {name for row in found for name in row if name.startswith("val/")}
        headline = headline_of(names, among=SCORES)
        made = [_evaluation(row, headline) for row in found] if headline else []
        return [evaluation for evaluation in made if headline and headline.key in evaluation.values]

    def entry(self, variant: str = "") -> dict[str, Any]:
        """Returns what `genlab test` left of the run's own way to sample or of a variant; {} if untested."""
        found = part(self.record, "variants", variant) if variant else part(self.record, "test")
        return found if part(found, "values") else {}

    @property
    def variants(self) -> list[str]:
        """The ways to sample that were tested; "" is the run's own."""
        names = ["", *map(str, part(self.record, "variants"))]
        return [name for name in names if self.entry(name)]


@dataclass
class Gathered:
    """The runs that were found, and what was wrong with others.

    Attributes:
        runs: Readable ones, in the order of their paths.
        problems: One sentence for each run that is left out.
    """

    runs: list[Trained] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def gather(paths: Sequence[Path], tagged: Sequence[str] = ()) -> Gathered:
    """Reads the runs at and below the paths; one that cannot be read is named and left out.

    Args:
        paths: Run folders or files in them, folders of an experiment, or roots; a run is read once.
        tagged: Tags that a run must have, all of them.

    Raises:
        NotARun: A path leads nowhere.
    """
    gathered, known = Gathered(), set()
    for path in paths:
        for folder in _run_folders(path, gathered.problems):
            place = os.path.realpath(folder)
            if place in known:
                gathered.problems.append(f"{shown_path(folder)} was given twice and is counted once.")
                continue
            known.add(place)
            _read_into(gathered, Run(folder))
    gathered.runs = [one for one in gathered.runs if {*tagged} <= {*one.tags}]
    return gathered


def part(record: Any, *names: str) -> dict[str, Any]:
    """Returns a dictionary inside dictionaries, {} where there is none or something else."""
    for name in names:
        record = record.get(name) if isinstance(record, dict) else None
    return record if isinstance(record, dict) else {}


def number(value: Any) -> float | None:
    """Returns a finite number as it is, None for everything else that a file may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def score(values: dict[str, Any], metric: str) -> tuple[str, float] | None:
    """Returns the full name and value of a metric given by its short name, such as `fid` for `fid@797`."""
    found = named(metric).found_in(values)
    return None if found is None else (found[0].rsplit("/", 1)[-1], found[1])


def _run_folders(path: Path, problems: list[str]) -> Iterator[Path]:
    place = Path(os.path.abspath(os.path.expanduser(path)))
    if not os.path.isdir(place):
        yield open_run(path).path  # a file in a run, or an error that names the nearest runs
        return
    yield from _below(place, _DEPTH, problems)


def _below(folder: Path, depth: int, problems: list[str]) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            children = {entry.name: entry.is_dir() for entry in entries}
    except OSError as error:
        problems.append(f"Left out: {shown_path(folder)} cannot be read ({error.strerror}).")
        return
    if not children.keys().isdisjoint(_SIGNS_OF_A_RUN):
        yield folder
    elif depth:
        # What chose a bench's settings, and what its second stages stand on, are no results of it.
        ignored = {"trials", "stages"} if "bench.json" in children else set()
        for name in sorted(name for name, is_folder in children.items() if is_folder and name[0] != "."):
            if name not in ignored:
                yield from _below(folder / name, depth - 1, problems)


def _read_into(gathered: Gathered, run: Run) -> None:
    try:
        record = run.read()
        for place in _READ:
            run.inside(place)
    except NotARun as error:
        told = str(error).replace(str(run.path), shown_path(run.path))
        gathered.problems.append(f"Left out: {told}")
        return
    status = str(record.get("status", "failed"))
    if status == "running":
        status = run.status  # asks whether its process still lives
    gathered.runs.append(Trained(run, record, status))


def _row(line: bytes) -> dict[str, Any]:
    try:
        return part(parse_json(line))
    except ValueError:
        return {}


def _evaluation(row: dict[str, Any], headline: Headline) -> Evaluation:
    values = {
        short_name(name): found
        for name, value in row.items()
        if name.startswith("val/") and (found := number(value)) is not None
    }
    seen, seconds = number(row.get("examples_seen")), number(row.get("seconds"))
    return Evaluation(int(seen or 0), seconds or 0.0, values, headline)
