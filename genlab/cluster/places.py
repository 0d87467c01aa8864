"""What a person types for a place, such as local:2, tcp://HOST:PORT or slurm, and what it stands for."""

from __future__ import annotations

import re
from pathlib import Path

from genlab.cluster.here import Here
from genlab.cluster.place import Place
from genlab.cluster.slurm import AT_A_TIME, Slurm, options_of
from genlab.cluster.workers import Workers
from genlab.text import shortened

MOST = 256
"""Tasks at a time."""

PLACES = "local:2, tcp://HOST:PORT, tls://HOST:PORT, slurm or slurm:partition=NAME,time=MINUTES"


def place_of(on: str | None, jobs: int | None, resources: str | None, folder: Path) -> Place:
    """Returns where tasks are to be done.

    Args:
        on: As in `PLACES`; None is this process's own machine.
        jobs: Tasks at a time, None for as many as the place takes.
        resources: What a task needs of a worker, such as GPU=1.
        folder: Where a place may keep its own files.

    Raises:
        ValueError: The text is none of these, or another option does not go with it.
    """
    kind, _, rest = (on or "").partition(":")
    if resources and kind not in ("tcp", "tls"):
        raise ValueError("--resources goes with --on tcp://HOST:PORT, whose workers have them.")
    if on is None:
        return Here(jobs or 1)
    if kind == "slurm":
        return Slurm(folder / "slurm", options_of(rest), jobs or AT_A_TIME)
    if jobs is not None:
        raise ValueError(f"--jobs does not go with --on {shortened(on)}: as many run as it has workers.")
    if kind == "local":
        return Workers(num_workers=_number(rest))
    if kind in ("tcp", "tls") and re.fullmatch(r"//[\w.-]+:\d{1,5}|//\[[\da-fA-F:.]+\]:\d{1,5}", rest):
        return Workers(on, resources=_resources(resources))
    raise ValueError(f"--on must be one of {PLACES}, got {shortened(on)!r}.")


def _number(text: str) -> int:
    number = int(text) if re.fullmatch(r"\d{1,4}", text) else 0
    if not 1 <= number <= MOST:
        raise ValueError(f"--on local:N needs a number of workers from 1 to {MOST}, got {shortened(text)!r}.")
    return number


def _resources(text: str | None) -> dict[str, float]:
    pairs = [pair.partition("=") for pair in (text or "").split(",") if pair]
    if bad := next((name for name, _, value in pairs if not name or not _AMOUNT.fullmatch(value)), None):
        raise ValueError(f"--resources: '{bad}' is no NAME=AMOUNT, such as GPU=1.")
    return {name: float(value) for name, _, value in pairs}


_AMOUNT = re.compile(r"\d{1,9}(?:\.\d{1,9})?")
