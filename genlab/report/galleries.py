"""Pictures and texts for the page: films through training, and what `genlab test` drew, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from genlab.report.comparison import Comparison
from genlab.report.gather import Trained, part
from genlab.report.pictures import Album, Shown
from genlab.report.points import trainings
from genlab.report.rows import Row

FRAMES = 12
"""Pictures of one run through its training."""


class Frame(NamedTuple):
    """What a model had learned after a share of its training; `seen` counts the examples until then."""

    shown: Shown
    share: float
    seen: str


def films(comparison: Comparison, album: Album) -> list[tuple[str, list[Frame]]]:
    """Returns the name of each training with the samples that it left on its way."""
    films = [(row.name, _film(row, album)) for row in trainings(comparison)]
    return [(name, frames) for name, frames in films if frames]


def _film(row: Row, album: Album) -> list[Frame]:
    for trained in row.runs:
        files = stored_samples(trained)
        if files:
            return list(_frames(row, trained, files, album))
    return []


def stored_samples(trained: Trained) -> list[tuple[int, str]]:
    """Returns when and where samples were stored during training, thinned from first to last."""
    places = {}
    for file in sorted(trained.run.samples.glob("samples_*")):
        digits = file.stem.removeprefix("samples_")
        if digits.isdecimal() and file.suffix in (".png", ".txt"):
            places[int(digits)] = f"samples/{file.name}"
    found = sorted(places.items())
    if len(found) > FRAMES:
        return [found[round(n * (len(found) - 1) / (FRAMES - 1))] for n in range(FRAMES)]
    return found


def _frames(row: Row, trained: Trained, files: list[tuple[int, str]], album: Album) -> Iterator[Frame]:
    last = files[-1][0] or 1
    for examples, file in files:
        seen = f"{examples:,} {trained.unit[0]}"
        shown = album.shown(trained.run, file, f"Samples of {row.name} after {seen}")
        if shown:
            yield Frame(shown, round(examples / last, 4), seen)


class Picture(NamedTuple):
    """What `genlab test` drew of a row, for one of its seeds."""

    name: str
    seed: Any
    shown: Shown


def gallery(kind: str, alt: str) -> Callable[[Comparison, Album], list[Picture]]:
    """Returns what gathers one kind of picture of all rows; `alt` stands before a row's name."""

    def gathered(comparison: Comparison, album: Album) -> list[Picture]:
        return [found for row in comparison.all_rows if (found := _picture(row, kind, alt, album))]

    return gathered


def _picture(row: Row, kind: str, alt: str, album: Album) -> Picture | None:
    for trained in row.runs:
        path = part(trained.entry(row.variant), "pictures").get(kind)
        shown = album.shown(trained.run, path, f"{alt} {row.name}") if path else None
        if shown:
            return Picture(row.name, trained.seed, shown)
    return None


def others(comparison: Comparison, album: Album) -> dict[str, list[Picture]]:
    """Returns the pictures and texts that have no section of their own, by what they are called."""
    entries = [entry for row in comparison.all_rows for entry in row.entries]
    kinds = dict.fromkeys(str(kind) for entry in entries for kind in part(entry, "pictures"))
    found = {kind: gallery(kind, f"{kind} of")(comparison, album) for kind in kinds if kind not in _KNOWN}
    return {kind: pictures for kind, pictures in found.items() if pictures}


_KNOWN = ("samples", "interpolation", "reconstruction", "neighbours", "passages", "failures")
