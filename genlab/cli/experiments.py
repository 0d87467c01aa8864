"""`genlab experiments`: what can be trained by name, without importing torch."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.configuration import experiments as known
from genlab.configuration.experiments import Experiment
from genlab.report.table import metrics_table
from genlab.runs.folder import shown_path
from genlab.text import shortened

COLUMNS = ("experiment", "family", "data", "paper", "measured")
LONGEST = 72  # characters of a cell


def experiments(arguments: list[str]) -> int:
    """Lists the experiments that hold all of some words, or copies one to be edited."""
    options = parser().parse_args(arguments)
    if options.copy:
        print(shown_path(copied(options.copy, options.output)))
        return 0
    found = [one for one in map(Experiment, known.experiments().values()) if one.has(options.words)]
    if not found:
        words = " ".join(options.words)
        raise ValueError(f"No experiment has {shortened(words)}. {known.nearest_names(words)}")
    metrics_table([row(one) for one in found], COLUMNS).show()
    if len(found) == 1:
        print(f"\n{found[0].head}")
    return 0


def row(experiment: Experiment) -> dict[str, Any]:
    """Returns what the list shows of an experiment."""
    return {
        "experiment": experiment.name,
        "family": experiment.family,
        "data": experiment.data,
        "paper": shortened_end(experiment.paper) or None,
        "measured": shortened_end(experiment.measured) or None,
    }


def shortened_end(text: str) -> str:
    """Returns a text without what is too much for a cell."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip(" ,;") + "…"


def copied(name: str, target: Path | None) -> Path:
    """Returns the file that an experiment was copied to, which was not there before.

    Raises:
        ValueError: There is no such experiment, or the file is there.
    """
    source = known.require(name)
    target = target or Path(source.name)
    target = target / source.name if os.path.isdir(target) else target
    read.require(read.output_file(".yaml", ".yml"), target, "--output")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with source.open("rb") as old, target.open("xb") as new:
            shutil.copyfileobj(old, new)
    except FileExistsError:
        raise ValueError(f"{shown_path(target)} is there already: name another one with --output.") from None
    print(f"Edit it, then: genlab fit --config {target}", file=sys.stderr)
    return target


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = Parser(
        prog="genlab experiments",
        description="List the experiments by name; `genlab fit --config NAME` trains one. Those of "
        "./experiments come before those that genlab brings.",
    )
    parser.add_argument(
        "words", type=read.words, nargs="*", help="only those that hold all of these words; of one, its head"
    )
    parser.add_argument("--copy", metavar="NAME", type=read.words, help="copy one here, to be edited")
    parser.add_argument(
        "--output", type=read.path, help="with --copy: the new file, or a folder for it (the current one)"
    )
    return parser
