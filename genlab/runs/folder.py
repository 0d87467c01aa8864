"""A run on disk: one folder that says everything about one training.

<root>/<experiment>/<date>-<time>/
    config.yaml       what was asked for, resolved
    run.json          what became of it: status, images seen, results
    environment.json  versions, machine, command line
    metrics.jsonl, metrics.csv, log.txt
    samples/, checkpoints/
    lock.json         while a process trains in it
"""

from __future__ import annotations

import os
import re
import sys
import time
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import genlab
from genlab import files
from genlab.errors import CheckpointError, StorageError
from genlab.runs import checkpoint_files, lock
from genlab.runs.changes import Change
from genlab.runs.schema import problem_of
from genlab.text import shortened, similar

STATUSES = ("created", "running", "finished", "stopped", "diverged", "failed")
"""Stopped: on request. Diverged: a loss was no longer finite. Failed: an error or a kill."""

SWEEP_RESULT = "result.json"
"""The file that says what a sweep has found, in its folder, below which its trials' runs lie."""

_RECORD = "run.json"
_NAME_LENGTH = 60  # characters; of four bytes each they still fit the 255 that file systems allow


class NotARun(ValueError):  # noqa: N818 - reads as the sentence it is
    """A path that leads to no run."""


@dataclass(frozen=True)
class Run:
    """One run's folder: where its parts lie, what its record says.

    Args:
        path: The run's folder.
    """

    path: Path

    @property
    def experiment(self) -> str:
        return self.path.parent.name

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.inside("config.yaml")

    @property
    def record(self) -> Path:
        return self.inside(_RECORD)

    @property
    def environment(self) -> Path:
        return self.inside("environment.json")

    @property
    def metrics_jsonl(self) -> Path:
        return self.inside("metrics.jsonl")

    @property
    def metrics_csv(self) -> Path:
        return self.inside("metrics.csv")

    @property
    def log(self) -> Path:
        return self.inside("log.txt")

    @property
    def samples(self) -> Path:
        return self.inside("samples")

    @property
    def checkpoints(self) -> Path:
        return self.inside("checkpoints")

    def inside(self, *parts: str) -> Path:
        """Returns a place in the run's folder; the folder itself may be a link, such as to another disk.

        Raises:
            NotARun: A link leads out of the folder: a run may be anybody's, and nothing is read or written
                elsewhere in its name.
        """
        place = self.path.joinpath(*parts)
        if not is_inside(place, self.path):
            raise NotARun(
                f"{shown_path(place)} leads out of the run's folder by a link: put the files themselves "
                "there, or link the whole run."
            )
        return place

    def output(self, *parts: str) -> Path:
        """Returns a place in the run's folder to write to, a file or a folder, which need not be there yet.

        Raises:
            NotARun: It, or something that lies in it already, leads out of the run's folder by a link.
            StorageError: It may not be written.
        """
        place = self.inside(*parts)
        if place.is_dir():
            with os.scandir(place) as entries:
                links = [entry.name for entry in entries if entry.is_symlink()]
            for name in links:
                self.inside(*parts, name)
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        if not os.access(there, os.W_OK):
            raise StorageError(
                f"{shown_path(there)} may not be written: give another place where the command takes "
                "--output, or copy the run."
            )
        return place

    @property
    def last_checkpoint(self) -> Path | None:
        """Where to resume: last.ckpt or, where it is missing or damaged, the newest whole one."""
        last = self.checkpoints / checkpoint_files.LAST
        return checkpoint_files.whole([last] if last.exists() else []) or checkpoint_files.whole(
            self.checkpoints.glob("[!.]*.ckpt")
        )

    @property
    def has_checkpoints(self) -> bool:
        """Whether there is any, whole or not; a folder that cannot be read may hold some."""
        try:
            return any(name.endswith(".ckpt") for name in os.listdir(self.checkpoints))
        except FileNotFoundError:
            return False
        except OSError:
            return True

    @property
    def best_checkpoint(self) -> Path | None:
        """The newest whole best*.ckpt."""
        return checkpoint_files.whole(self.checkpoints.glob("best*.ckpt"))

    def checkpoint(self, which: str = "last") -> Path:
        """Returns the last or the best checkpoint; says so where another one stands in for a damaged one.

        Raises:
            CheckpointError: There is none, or all are damaged; the message names each.
        """
        found = self.last_checkpoint if which == "last" else self.best_checkpoint
        asked = self.checkpoints / f"{which}.ckpt"
        if found is None:
            raise CheckpointError(self._why_no_checkpoint(which))
        if found != asked and asked.exists():
            told = f"! {checkpoint_files.described(asked)}: {found.name} is used in its place."
            print(told, file=sys.stderr)
        return found

    def _why_no_checkpoint(self, which: str) -> str:
        pattern = "[!.]*.ckpt" if which == "last" else "best*.ckpt"
        damaged = sorted(self.checkpoints.glob(pattern))
        if damaged:
            named = "; ".join(map(checkpoint_files.described, damaged))
            return f"Every checkpoint of {self.path} is damaged: {named}. Restore one, or train again."
        if which == "best" and self.last_checkpoint is not None:
            return f"{self.path} has no best checkpoint, since no score was measured: take --ckpt_path last."
        return f"{self.path} has no checkpoint: the run ended before its first one was written."

    @property
    def status(self) -> str:
        """One of STATUSES; a run that was killed while running has failed, though it could not write so."""
        status = str(self.read().get("status", "failed"))
        killed = status == "running" and self._lock.exists() and not self.is_live
        return "failed" if killed else status

    @property
    def is_live(self) -> bool:
        """Whether a process trains in this folder now."""
        return lock.is_held(self._lock)

    def read(self) -> dict[str, Any]:
        """Returns the record, run.json.

        Raises:
            NotARun: The file is missing, or holds what no training writes, see `genlab.runs.schema`.
        """
        file = self.record
        try:
            record = files.parse_json(file.read_bytes(), object_hook=in_todays_words)
        except (OSError, ValueError) as error:
            raise NotARun(
                f"{file} cannot be read ({_reason(error)}); restore it or remove the run."
            ) from error
        problem = problem_of(record)
        if problem:
            raise NotARun(f"{file} is no record of a run ({problem}); restore it or remove the run.")
        return record

    def require_todays_model(self) -> None:
        """Refuses a run of a version whose settings and checkpoints had other names.

        Raises:
            ValueError: With what can still be done with it.
        """
        version = str(self.read().get("genlab", ""))
        if version.startswith("0.1."):
            raise ValueError(
                f"{self.path} was trained by genlab {version}, whose settings and checkpoints this version "
                f"does not read: compare and report it, and load it with that version or train it again."
            )

    def update(self, **fields: Any) -> None:
        """Merges fields into the record in one step; a dictionary is merged into the one already there."""
        status = fields.get("status", STATUSES[0])
        if status not in STATUSES:
            raise ValueError(f"The status of a run must be one of {', '.join(STATUSES)}, got {status!r}.")
        with lock.exclusive(self.path):
            files.write_json(self.record, _merged(self.read(), fields))

    def replace(self, **fields: Any) -> None:
        """Sets fields of the record in one step, whatever they held before."""
        with lock.exclusive(self.path):
            files.write_json(self.record, {**self.read(), **fields})

    def record_changes(self, changes: Iterable[Change], examples_seen: int) -> None:
        """Adds to the record's `changes` what is done otherwise from so many examples on."""
        with lock.exclusive(self.path):
            record = self.read()
            added = [{"examples_seen": examples_seen, **change.to_dict()} for change in changes]
            files.write_json(self.record, {**record, "changes": [*record.get("changes", []), *added]})

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps every other training process out of this folder; only the first rank takes it.

        Raises:
            genlab.runs.lock.RunIsLive: Another process trains in it.
        """
        with lock.hold(self._lock):
            files.sweep(self.checkpoints)
            yield

    @property
    def _lock(self) -> Path:
        return self.inside("lock.json")


def in_todays_words(entry: dict[str, Any]) -> dict[str, Any]:
    """Returns a JSON object of a record with the names that version 0.1 had for examples replaced."""
    if entry.keys() == {"images", "seconds"}:  # a budget
        return {"examples": entry["images"], "seconds": entry["seconds"]}
    return {"examples_seen" if name == "images_seen" else name: value for name, value in entry.items()}


def outputs_root() -> Path:
    """Returns where runs go unless told otherwise: $GENLAB_OUTPUTS, or ./outputs."""
    return Path(os.environ.get("GENLAB_OUTPUTS") or "outputs")


def create_run(experiment: str, root: Path | None = None, name: str | None = None) -> Run:
    """Makes a new folder <root>/<experiment>/<date>-<time>; a second one of the same second ends in -2.

    Args:
        experiment: The experiment's name, see `folder_name`.
        root: Folder of all runs; `outputs_root()` if None.
        name: The folder's name in place of date and time.

    Raises:
        ValueError: There is a run of that name already.
    """
    parent = _absolute(root or outputs_root()) / folder_name(experiment)
    parent.mkdir(parents=True, exist_ok=True)
    dated = time.strftime("%Y%m%d-%H%M%S")
    run = Run(_new_folder(parent, folder_name(name)) if name else _unique_folder(parent, dated))
    run.samples.mkdir()
    run.checkpoints.mkdir()
    files.write_json(run.record, _first_record(run, experiment))
    return run


def folder_name(experiment: str) -> str:
    """Returns the name as a folder: letters and digits of any script, `_`, `.` and `-` stay.

    Every other stretch (spaces, slashes, ...) becomes one `-`; the ends lose `.` and `-`; at most 60
    characters are kept.

    Raises:
        ValueError: Nothing is left.
    """
    kept = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFKC", experiment))
    name = kept.strip(".-")[:_NAME_LENGTH].rstrip(".-")
    if not name:
        raise ValueError(f"The experiment's name must hold a letter or a digit, got {experiment!r}.")
    return name


def open_run(path: str | Path) -> Run:
    """Returns the run at a path: its folder, or a file in it such as config.yaml or a checkpoint.

    Raises:
        NotARun: There is none; the message names the nearest ones.
    """
    place = _absolute(path)
    exists = bool(str(path)) and os.path.exists(place)  # False, too, for a name that no file system takes
    if exists:
        for folder in (place, *place.parents)[:3]:  # a checkpoint lies two levels below its run
            if os.path.isfile(folder / _RECORD):
                return Run(folder)
    missing = f"there is no {_RECORD} in it" if exists else "there is no such file or folder"
    raise NotARun(f"{shortened(str(path)) or 'An empty name'} is not a run: {missing}. {_suggestions(place)}")


def list_runs(root: Path | None = None) -> list[Run]:
    """Returns the runs at a folder or one or two levels below it, oldest first.

    One whose record is damaged is named in a warning and left out.
    """
    dated = []
    place = _absolute(root or outputs_root())
    for pattern in (_RECORD, f"*/{_RECORD}", f"*/*/{_RECORD}"):
        for record in place.glob(pattern):
            run = Run(record.parent)
            if os.path.isfile(run.path.parent / _RECORD):  # the first stage that a run keeps
                continue
            try:
                dated.append((run.read().get("created") or "", run.path))
            except NotARun as error:
                warnings.warn(str(error))
    return [Run(path) for _, path in sorted(dated)]


def _new_folder(parent: Path, name: str) -> Path:
    folder = parent / name
    try:
        folder.mkdir()
    except FileExistsError:
        raise ValueError(
            f"There is a run {shown_path(folder)} already: `genlab resume` continues it, another name "
            f"keeps both."
        ) from None
    return folder


def _unique_folder(parent: Path, name: str) -> Path:
    for number in count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()  # atomic: of two processes only one makes it
        except FileExistsError:
            continue
        return folder
    raise AssertionError("count() does not end")


def _first_record(run: Run, experiment: str) -> dict[str, Any]:
    created = datetime.now(UTC).isoformat()
    names = {"experiment": experiment, "run": run.name}
    return {"status": STATUSES[0], **names, "created": created, "genlab": genlab.__version__}


def _merged(record: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    merged = dict(record)
    for name, value in fields.items():
        old = record.get(name)
        merged[name] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _suggestions(place: Path) -> str:
    roots = filter(os.path.isdir, dict.fromkeys((_absolute(outputs_root()), place, *place.parents[:4])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = dict.fromkeys(str(run.path) for root in roots for run in reversed(list_runs(root)))
    near = similar(str(place), paths, least=0.0)
    if not near:
        return f"There are no runs in {outputs_root()} yet: `genlab fit --config FILE` makes one."
    return "Nearest runs: " + ", ".join(shown_path(Path(path)) for path in near)


def _absolute(path: str | Path) -> Path:
    # Not resolve(): a run or a checkpoint may be a link to another disk and still belongs where it is linked.
    return Path(os.path.abspath(os.path.expanduser(path)))


def is_inside(place: Path, folder: Path) -> bool:
    """Returns whether a place lies in a folder once all links are followed."""
    return Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder))


def shown_path(path: Path) -> str:
    """Returns a path as a person at this place would type it."""
    return os.path.relpath(path) if path.absolute().is_relative_to(Path.cwd()) else str(path)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
