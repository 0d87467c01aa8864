"""Finds the runs below some folders and reads what a comparison needs of each, and nothing more."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from genlab.runs.folder import NotARun, Run, open_run, shown_path
from genlab.runs.metrics_file import short_name

_SIGNS_OF_A_RUN = ("run.json", "config.yaml", "metrics.jsonl", "environment.json", "checkpoints")
_DEPTH = 3  # a root of benches holds benches of experiments of runs


@dataclass(frozen=True)
class Evaluation:
    """The sample score of one evaluation during training.

    Attributes:
        examples_seen: When, on the axis that families share.
        seconds: When, in seconds of training alone.
        name: The score's full name, such as `fid@797`.
        fid: Its value.
    """

    examples_seen: int
    seconds: float
    name: str
    fid: float


@dataclass(frozen=True)
class Trained:
    """One training, as its folder tells it.

    Args:
        run: Its folder.
        record: Its run.json.
        status: What became of it.
    """

    run: Run
    record: dict[str, Any]
    status: str

    @property
    def experiment(self) -> str:
        return str(self.record.get("experiment") or self.run.experiment)

    @property
    def family(self) -> str:
        return str(self.record.get("family") or "")

    @property
    def seed(self) -> Any:
        return self.record.get("seed")

    @property
    def name(self) -> str:
        return f"{self.experiment}/{self.run.name}"

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
            return part(json.loads(self.run.environment.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}

    @cached_property
    def settings(self) -> str:
        """The configuration without the training seed: what all seeds of a row have in common."""
        return "".join(line for line in self.config.splitlines(True) if not line.startswith(_SEED_LINES))

    @cached_property
    def budget(self) -> str:
        """What the training was allowed, in words: of its bench, else of its configuration."""
        planned = part(self.record, "bench", "budget") or _budget_block(self.config)
        seconds, images = number(planned.get("seconds")), number(planned.get("examples"))
        words = [] if seconds is None else [f"{seconds:g} s"]
        words += [] if images is None else [f"{images:,.0f} images"]
        if words:
            return " or ".join(words)
        seen = number(self.record.get("examples_seen"))
        return "" if seen is None else f"{seen:,.0f} images"

    @property
    def is_timed(self) -> bool:
        """Whether the budget holds seconds, which buy more on a faster machine."""
        return " s" in self.budget

    @property
    def hardware(self) -> str:
        """What it was trained on, with whatever changes its speed."""
        record, threads = self.record, self.record.get("threads")
        words = [f"{record.get('num_devices', 1)} x {record.get('device', 'unknown device')}"]
        words += [f"{threads} thread{'s' if threads != 1 else ''}"] if threads is not None else []
        return ", ".join([*words, *([str(record["precision"])] if "precision" in record else [])])

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """The FID of every evaluation during training, in order."""
        try:
            lines = self.run.metrics_jsonl.read_bytes().split(b"\n")
        except OSError:
            return []
        found = (_evaluation(line) for line in lines if b'"val/fid' in line)  # most lines hold losses only
        return [evaluation for evaluation in found if evaluation is not None]

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


def gather(paths: Sequence[Path]) -> Gathered:
    """Reads the runs at and below the paths; one that cannot be read is named and left out.

    Args:
        paths: Run folders or files in them, folders of an experiment, or roots; a run is read once.

    Raises:
        NotARun: A path leads nowhere.
    """
    gathered, known = Gathered(), set()
    for path in paths:
        for folder in _run_folders(path):
            place = os.path.realpath(folder)
            if place in known:
                gathered.problems.append(f"{shown_path(folder)} was given twice and is counted once.")
                continue
            known.add(place)
            _read_into(gathered, Run(folder))
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
    for name, value in values.items():
        found = number(value)
        if found is not None and short_name(name) == metric:
            return name.rsplit("/", 1)[-1], found
    return None


_SEED_LINES = ("seed_everything:", "#")


def _run_folders(path: Path) -> Iterator[Path]:
    place = Path(os.path.abspath(path.expanduser()))
    if not place.is_dir():
        yield open_run(path).path  # a file in a run, or an error that names the nearest runs
        return
    yield from _below(place, _DEPTH)


def _below(folder: Path, depth: int) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        children = {entry.name: entry.is_dir() for entry in entries}
    if not children.keys().isdisjoint(_SIGNS_OF_A_RUN):
        yield folder
    elif depth:
        # The trials that chose a bench's settings are no results of it.
        ignored = {"trials"} if "bench.json" in children else set()
        for name in sorted(name for name, is_folder in children.items() if is_folder and name[0] != "."):
            if name not in ignored:
                yield from _below(folder / name, depth - 1)


def _read_into(gathered: Gathered, run: Run) -> None:
    try:
        record = run.read()
    except NotARun as error:
        told = str(error).replace(str(run.record), shown_path(run.record))
        gathered.problems.append(f"Left out: {told}")
        return
    status = str(record.get("status", "failed"))
    if status == "running":
        status = run.status  # asks whether its process still lives
    gathered.runs.append(Trained(run, record, status))


def _evaluation(line: bytes) -> Evaluation | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    found = score({name: v for name, v in row.items() if name.startswith("val/")}, "fid")
    if found is None:
        return None
    seen, seconds = number(row.get("examples_seen")), number(row.get("seconds"))
    return Evaluation(int(seen or 0), seconds or 0.0, *found)


def _budget_block(config: str) -> dict[str, Any]:
    # Two keys of one block: parsing whole configurations would take seconds for 200 runs.
    block: dict[str, Any] = {}
    inside = False
    for line in config.splitlines():
        if not line.startswith(" "):
            inside = line.startswith("budget:")
        elif inside:
            name, _, value = line.strip().partition(":")
            block[name] = _plain_number(value.strip())
    return block


def _plain_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
