"""`genlab runs`: what has been trained so far, without importing torch."""

from __future__ import annotations

import argparse
import sys
import warnings
from typing import Any

from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.report.table import metrics_table
from genlab.runs.folder import Run, list_runs, outputs_root
from genlab.runs.headline import LOSS, headlines_of
from genlab.text import printable

COLUMNS = ("experiment", "run", "status", "examples_seen", "scores", "training")


def runs(arguments: list[str]) -> int:
    """Prints one line for each run, the newest last."""
    options = parser().parse_args(arguments)
    with warnings.catch_warnings(record=True) as problems:
        warnings.simplefilter("always")
        found = list_runs(options.root)
    for problem in problems:
        print(f"! Left out: {printable(str(problem.message))}", file=sys.stderr)
    if not found:
        print(
            f"No runs in {options.root or outputs_root()} yet: genlab fit --config FILE makes one.",
            file=sys.stderr,
        )
        return 0
    metrics_table([row(run) for run in found], COLUMNS).show()
    return 0


def row(run: Run) -> dict[str, Any]:
    """Returns what the list shows of a run."""
    record = run.read()
    scores = (record.get("test") or {}).get("values") or record.get("validation") or {}
    seconds = record.get("training_seconds")
    return {
        "experiment": record.get("experiment") or run.experiment,
        "run": run.name,
        "status": run.status,
        "examples_seen": record.get("examples_seen"),
        "scores": ", ".join(f"{name.removeprefix('val/')} {value:.4g}" for name, value in headline(scores)),
        "training": f"{seconds:,.0f} s" if seconds else None,
    }


def headline(scores: dict[str, float]) -> list[tuple[str, float]]:
    """Returns the two scores that a list has room for."""
    found = headlines_of(scores)
    shown = [headline for headline in found if headline is not LOSS] or found
    return [score for headline in shown[:2] if (score := headline.found_in(scores))]


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = Parser(prog="genlab runs", description="List the runs.")
    parser.add_argument(
        "root", type=read.folder, nargs="?", help="folder of the runs ($GENLAB_OUTPUTS or ./outputs)"
    )
    return parser
