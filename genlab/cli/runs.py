"""`genlab runs`: what has been trained so far, without importing torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from genlab.report.table import metrics_table
from genlab.runs.folder import Run, list_runs, outputs_root
from genlab.runs.metrics_file import short_name

COLUMNS = ("experiment", "run", "status", "examples_seen", "scores", "training")


def runs(arguments: list[str]) -> int:
    """Prints one line for each run, the newest last."""
    parser = argparse.ArgumentParser(prog="genlab runs", description="List the runs.")
    parser.add_argument(
        "root", type=Path, nargs="?", help="folder of the runs ($GENLAB_OUTPUTS or ./outputs)"
    )
    options = parser.parse_args(arguments)
    found = list_runs(options.root)
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
    scores = record.get("test", {}).get("values") or record.get("validation") or {}
    seconds = record.get("training_seconds")
    return {
        "experiment": run.experiment,
        "run": run.name,
        "status": run.status,
        "examples_seen": record.get("examples_seen"),
        "scores": ", ".join(f"{name.removeprefix('val/')} {value:.4g}" for name, value in headline(scores)),
        "training": f"{seconds:,.0f} s" if seconds else None,
    }


def headline(scores: dict[str, float]) -> list[tuple[str, float]]:
    """Returns the two scores that a list has room for."""
    ranked = ("fid", "bits_per_dim", "accuracy", "recall", "wasserstein", "loss")

    def rank(name: str) -> int:
        short = short_name(name)
        return ranked.index(short) if short in ranked else len(ranked)

    names = sorted((name for name in scores if rank(name) < len(ranked)), key=rank)
    return [(name, scores[name]) for name in names[:2]]
