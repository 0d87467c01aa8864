"""The options that say where many runs are trained, and how many at a time."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from genlab.cli import arguments as read
from genlab.runs.task import Task

if TYPE_CHECKING:
    from genlab.cluster.place import Place

MOST_JOBS = 256


def add_place(parser: argparse.ArgumentParser) -> None:
    """Adds them to a command."""
    parser.add_argument(
        "--jobs",
        type=read.count(most=MOST_JOBS),
        help="runs at a time: here each its share of cores (1), of SLURM's array (16)",
    )
    parser.add_argument(
        "--on",
        type=read.words,
        metavar="PLACE",
        help="local:2 (workers of dask), tcp://HOST:PORT (those of a dask scheduler), slurm, "
        "slurm:partition=gpu,time=120 or slurm:FILE.yaml; this process's machine if not given",
    )
    parser.add_argument(
        "--resources", type=read.words, metavar="NAME=AMOUNT", help="what a run needs of a worker: GPU=1"
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print SLURM's job and the commands that come next; do nothing",
    )


def place_asked(options: argparse.Namespace, folder: Path) -> Place:
    """Returns the place that the options name; a place may keep files of its own in the folder.

    Raises:
        ValueError: There is no such place.
    """
    from genlab.cluster.places import place_of

    return place_of(options.on, options.jobs, options.resources, folder)


def show(place: Place, tasks: Sequence[Task]) -> None:
    """Prints what would be done next."""
    if script := place.script(len(tasks)):
        print(script)
    for task in tasks:
        if command := task.command():
            print(shlex.join(["genlab", *command]))
