"""Which of many runs are meant, in which order, and how they are marked and removed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Self

from genlab.runs.folder import NotARun, Run, is_inside, outputs_root, shown_path
from genlab.runs.headline import named
from genlab.runs.metrics_file import short_name
from genlab.text import nearest

FACTS = ("experiment", "family", "data", "status")
"""What runs are chosen by, one value each; tags and words are the others."""


@dataclass(frozen=True)
class Described:
    """A run with what lists show and choose it by.

    Args:
        run: Its folder.
        record: Its run.json.
        status: What became of it.
    """

    run: Run
    record: dict[str, Any]
    status: str

    @classmethod
    def of(cls, run: Run) -> Self:
        return cls(run, run.read(), run.status)

    @property
    def experiment(self) -> str:
        return str(self.record.get("experiment") or self.run.experiment)

    @property
    def family(self) -> str:
        return str(self.record.get("family") or "")

    @property
    def data(self) -> str:
        return str((self.record.get("data") or {}).get("name") or "")

    @property
    def tags(self) -> list[str]:
        return tags_of(self.record)

    @property
    def scores(self) -> dict[str, float]:
        """Those of the test, else those of the last validation."""
        return (self.record.get("test") or {}).get("values") or self.record.get("validation") or {}

    @property
    def text(self) -> str:
        """All that words are looked for in, in small letters."""
        told = [self.run.name, *(str(getattr(self, name)) for name in FACTS), *self.tags]
        return " ".join([*told, str(self.record.get("error") or "")]).lower()


@dataclass(frozen=True)
class Wanted:
    """Which runs are meant: those that meet every condition that is given.

    Attributes:
        experiment, family, data: The value, or a pattern such as `dcgan_*`.
        status: One of `genlab.runs.folder.STATUSES`.
        tagged: Tags that a run has, all of them.
        words: What its names, tags and error hold, all of them, in whatever letters.
    """

    experiment: str | None = None
    family: str | None = None
    data: str | None = None
    status: str | None = None
    tagged: Sequence[str] = ()
    words: Sequence[str] = ()

    @property
    def is_everything(self) -> bool:
        """Whether no condition is given."""
        return self == Wanted()

    def among(self, runs: Sequence[Described]) -> list[Described]:
        """Returns the runs that are meant, in their order.

        Raises:
            ValueError: No run has a value, with those that there are: a slip would read as an empty list.
        """
        for name in ("experiment", "family", "data"):
            if (asked := getattr(self, name)) is not None:
                _require_known(name, asked, {getattr(one, name) for one in runs} - {""})
        for tag in self.tagged:
            _require_known("tagged", tag, {tag for one in runs for tag in one.tags})
        return [one for one in runs if self._has(one)]

    def _has(self, one: Described) -> bool:
        asked = [(getattr(self, name), getattr(one, name)) for name in FACTS]
        fits = all(fnmatchcase(found, pattern) for pattern, found in asked if pattern is not None)
        return fits and {*self.tagged} <= {*one.tags} and all(w.lower() in one.text for w in self.words)


def _require_known(option: str, asked: str, known: Iterable[str]) -> None:
    found = sorted(known)
    if not any(fnmatchcase(value, asked) for value in found):
        there = f"There are: {', '.join(found[:10])}" if found else "No run has any"
        raise ValueError(f"--{option}: no run has '{asked}'.{nearest(asked, found)} {there}.")


def tags_of(record: dict[str, Any]) -> list[str]:
    """Returns the tags of a run's record, sorted."""
    return sorted({*filter(None, record.get("tags") or [])})


def tag(run: Run, added: Iterable[str] = (), removed: Iterable[str] = ()) -> list[str]:
    """Adds and removes tags of a run and returns those that it has then.

    Raises:
        ValueError: One that is to be removed is not there.
    """
    tags = {*tags_of(run.read())}
    for name in removed:
        if name not in tags:
            has = ", ".join(sorted(tags)) or "none"
            raise ValueError(f"{shown_path(run.path)} has no tag '{name}'; it has: {has}.")
    tags = tags.union(added).difference(removed)
    run.replace(tags=sorted(tags))
    return sorted(tags)


KEYS = ("created", "experiment", "family", "data", "run", "status", "examples_seen", "training_seconds")
"""What lists can be sorted by, beside any score by its short name."""


def in_order(runs: Sequence[Described], key: str) -> list[Described]:
    """Returns runs sorted by one of `KEYS`, or by a score with the best first; those without it come last.

    Of a score whose better side is not known (`named`) the lowest comes first.

    Raises:
        ValueError: There is no such key, with the nearest one.
    """
    if key not in KEYS:
        scores = {short_name(name) for one in runs for name in one.scores}
        if key not in scores:
            there = ", ".join([*KEYS, *sorted(scores)])
            raise ValueError(
                f"--sort: no run has '{key}'.{nearest(key, [*KEYS, *scores])} There are: {there}."
            )
    with_value = [(value, one) for one in runs if (value := _value(one, key)) is not None]
    without = [one for one in runs if _value(one, key) is None]
    return [one for _, one in sorted(with_value, key=lambda pair: pair[0])] + without


def _value(one: Described, key: str) -> Any:
    if key in (*FACTS, "run"):
        return (one.run.name if key == "run" else getattr(one, key)) or None
    if key in KEYS:
        return one.record.get(key)
    score = named(key)
    found = score.found_in(one.scores)
    return None if found is None else score.cost(found[1])


def why_not_removable(run: Run) -> str:
    """Returns why a run must stay, in words; "" where it may be removed.

    Only what lies below the outputs is removed: what a link leads to may be somebody else's.
    """
    root = outputs_root()
    if run.path.is_symlink():
        return "it is a link, whose target may be somebody else's"
    if not is_inside(run.path, root) or is_inside(root, run.path):
        return f"it does not lie in {shown_path(root)}"
    return "a process trains in it" if run.is_live else ""


def remove(run: Run) -> None:
    """Removes a run's folder, and its experiment's where that is empty then.

    Raises:
        NotARun: It is none, or lies elsewhere than in the outputs.
        genlab.runs.lock.RunIsLive: A process trains in it.
    """
    run.read()
    if reason := why_not_removable(run):
        raise NotARun(f"{shown_path(run.path)} is not removed: {reason}.")
    with run.lock():  # a training that begins now finds it taken, and then no run
        shutil.rmtree(run.path)
    with suppress(OSError):
        if run.path.parent.absolute() != outputs_root().absolute():
            run.path.parent.rmdir()
