"""One run folder to be brought to its end, as plain data: whoever sees the folder can do it, and begin again.

What is left to do is read from the folder alone, so that nothing is lost with whoever worked on it, and
nothing is done twice.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genlab.runs.folder import NotARun, Run, open_run
from genlab.runs.tests import variants_of

UNFINISHED = ("new", "started")
"""States in which a training is to be begun or to go on."""


@dataclass(frozen=True)
class Task:
    """What brings one run folder to its end.

    Args:
        name: As people are told of it.
        run: The run's folder, <root>/<experiment>/<run>.
        fit: The arguments of `genlab` that make the run, such as ("fit", "--config=...", "--run_name=...").
        log: The file that takes what the commands print.
        folder: Where the commands are started.
        is_tested: Whether the run is to be tested, too.
        allowed: Packages that configurations may name classes of, separated by commas.
    """

    name: str
    run: Path
    fit: tuple[str, ...]
    log: Path
    folder: Path
    is_tested: bool = False
    allowed: str = ""

    @property
    def lock(self) -> Path:
        """The file that says who works on it."""
        return self.log.with_suffix(".lock.json")

    def state(self) -> str:
        """Returns how far the run is, see `state_of`."""
        return state_of(run_at(self.run))

    def command(self) -> list[str] | None:
        """Returns the arguments of `genlab` that come next, None where there is nothing left to do."""
        state = self.state()
        if state == "new":
            return list(self.fit)
        if state == "started":
            return ["resume", str(self.run)]
        return ["test", str(self.run)] if state == "trained" and self.is_tested else None

    def clear(self) -> None:
        """Removes what a training left that was killed before its first checkpoint."""
        shutil.rmtree(self.run, ignore_errors=True)


def run_at(path: Path) -> Run | None:
    """Returns the run of a folder, None where it holds nothing to go on with.

    Raises:
        NotARun: It holds checkpoints, but no record that could be read.
    """
    try:
        run = open_run(path) if path.exists() else None
    except NotARun:
        if Run(path).has_checkpoints:
            raise
        run = None  # killed before it had a record
    return run if run is not None and run.path == Path(os.path.abspath(path)) else None


def state_of(run: Run | None) -> str:
    """Returns "new", "live", "started", "trained", "tested" or "diverged".

    A run whose checkpoints cannot be read is "started", for what is "new" is deleted and begun again.
    """
    if run is None:
        return "new"
    if run.is_live:
        return "live"
    record, status = run.read(), run.status
    if status == "diverged":
        return "diverged"
    if status != "finished":
        return "started" if run.has_checkpoints else "new"
    return "tested" if _is_tested(run, record) else "trained"


def _is_tested(run: Run, record: dict[str, Any]) -> bool:
    return bool(record.get("test")) and set(variants_of(run)) <= set(record.get("variants") or {})
