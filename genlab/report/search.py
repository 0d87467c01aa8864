"""What a sweep has found, as its folder tells it: what was tried, what matters and what was best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genlab.files import parse_json
from genlab.report.columns import Cell
from genlab.report.gather import number, part
from genlab.runs.folder import SWEEP_RESULT, is_inside, shown_path


@dataclass(frozen=True)
class Search:
    """A sweep that has ended.

    Attributes:
        name: Its folder's.
        heads: Headings of the trials.
        trials: A line for each, the best first: its number, its score, its settings.
        numeric: For each heading, whether it is of numbers.
        importance: Each setting's share of the score's variance, {} where the scores do not tell.
        best: Facts of the best trial, each with its name.
    """

    name: str
    heads: Sequence[str]
    trials: Sequence[Sequence[Cell]]
    numeric: Sequence[bool]
    importance: Mapping[str, float]
    best: Sequence[tuple[str, str]]


def searches(folders: Sequence[Path]) -> list[Search]:
    """Returns the sweeps that have ended, of some folders."""
    return [made for folder in folders if (made := _search(folder))]


def unended(folders: Sequence[Path]) -> list[str]:
    """Returns a sentence for each sweep that has no result yet."""
    return [
        f"The sweep in {shown_path(folder)} has no result yet: genlab sweep writes it at its end."
        for folder in folders
        if not _trials(_result(folder))
    ]


def _result(folder: Path) -> dict[str, Any]:
    """Returns what a sweep has written at its end, {} where there is nothing that can be read."""
    file = folder / SWEEP_RESULT
    try:
        return part(parse_json(file.read_bytes())) if is_inside(file, folder) else {}
    except (OSError, ValueError):
        return {}


def _trials(result: dict[str, Any]) -> list[dict[str, Any]]:
    found = result.get("trials")
    return [trial for trial in found if isinstance(trial, dict)] if isinstance(found, list) else []


def _search(folder: Path) -> Search | None:
    result = _result(folder)
    trials = _trials(result)
    if not trials:
        return None
    keys = list(dict.fromkeys(key for trial in trials for key in part(trial, "settings")))
    title = str(result.get("score") or "score")
    lines = [_line(trial, keys) for trial in trials]
    of_settings = list(zip(*lines, strict=True))[2:]
    numeric = [True, True, *(all(cell.value is not None for cell in cells) for cells in of_settings)]
    shares = {key: number(share) for key, share in part(result, "importance").items()}
    matters = {key: share for key, share in shares.items() if share is not None}
    best = _best(trials, title, result)
    return Search(folder.name, ["trial", title, *keys], lines, numeric, matters, best)


def _line(trial: dict[str, Any], keys: Sequence[str]) -> list[Cell]:
    mark = "*" if trial.get("own") is True else ""
    settings = part(trial, "settings")
    return [
        Cell(str(trial.get("trial")), number(trial.get("trial")), mark=mark),
        Cell(_score(trial), number(trial.get("score"))),
        *(Cell(text, _number_of(text)) for text in (str(settings.get(key, "")) for key in keys)),
    ]


def _score(trial: dict[str, Any]) -> str:
    found = number(trial.get("score"))
    return "diverged" if found is None else f"{found:.4g}"


def _number_of(text: str) -> float | None:
    try:
        return number(float(text))
    except ValueError:
        return None


def _best(trials: list[dict[str, Any]], title: str, result: dict[str, Any]) -> list[tuple[str, str]]:
    own = next((trial for trial in trials if trial.get("own") is True), None)
    facts = [(title, f"{_score(trials[0])} in trial {trials[0].get('trial')}")]
    if own is not None:
        facts.append(("own settings", _score(own)))
    facts += [(key, str(value)) for key, value in part(trials[0], "settings").items()]
    return [*facts, ("written to", str(result.get("best") or ""))]
