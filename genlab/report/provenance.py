"""Where the numbers of the page come from: data, commands, versions, machines, hashes."""

from __future__ import annotations

from typing import Any

from genlab.report import fairness
from genlab.report.comparison import Comparison
from genlab.report.gather import Trained, part
from genlab.report.points import trainings

Pairs = list[tuple[str, str]]


def data_of(comparison: Comparison) -> list[tuple[str, Pairs]]:
    """Returns every data set and whose it is, with what its records say of it."""
    found: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for row in trainings(comparison):
        if data := part(row.first.record, "data"):
            found.setdefault(str(data), (data, []))[1].append(row.name)
    whose = [", ".join(names) if len(found) > 1 else "all models" for _, names in found.values()]
    return [
        (f"{data.get('name', 'data')} ({names})", _told_of_data(data))
        for (data, _), names in zip(found.values(), whose, strict=True)
    ]


def _told_of_data(data: dict[str, Any]) -> Pairs:
    held = [(name, value) for name, value in data.items() if value not in (None, {}, "")]
    return [(str(name).replace("_", " "), fairness.text_of(value)) for name, value in held]


def provenance(comparison: Comparison) -> list[tuple[str, Pairs, str]]:
    """Returns the name of each training, how each of its seeds came about, and the configuration."""
    return [
        (row.name, [pair for trained in row.runs for pair in _facts_of(trained)], row.first.config)
        for row in trainings(comparison)
    ]


def _facts_of(trained: Trained) -> Pairs:
    return [(f"seed {trained.seed}, {name}", fact) for name, fact in facts_of(trained).items()]


def facts_of(trained: Trained) -> dict[str, str]:
    """Returns how a training came about, in words by what they tell, without what is not recorded."""
    facts = {
        "run": f"{trained.name}, {trained.status}",
        "tags": ", ".join(trained.tags),
        "command": _command(trained),
        "test": " ".join(["genlab test", trained.name, *map(str, trained.entry().get("arguments") or [])]),
        "versions": _versions(trained),
        "machine": _machine(trained),
        "hashes": _hashes(trained),
    }
    return {name: fact for name, fact in facts.items() if fact}


def _command(trained: Trained) -> str:
    command = trained.environment.get("command")
    words = command if isinstance(command, list) else []
    return " ".join(map(str, words)).replace("__main__.py", "genlab", 1)


def _versions(trained: Trained) -> str:
    environment = trained.environment
    versions = {"python": environment.get("python"), **part(environment, "packages")}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _machine(trained: Trained) -> str:
    words = map(trained.environment.get, ("cpu", "device", "platform"))
    return ", ".join(str(word) for word in words if word)


def _hashes(trained: Trained) -> str:
    git = part(trained.environment, "git")
    marks = {"commit": git.get("commit"), "checkpoint": trained.entry().get("checkpoint_digest")}
    changed = " with uncommitted changes" if git.get("dirty") else ""
    return ", ".join(f"{name} {value}" for name, value in marks.items() if value) + changed
