"""`genlab runs`: what has been trained so far, chosen, sorted, tagged or removed, without importing torch."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.errors import EXIT_USAGE
from genlab.report.table import metrics_table
from genlab.runs.folder import STATUSES, Run, list_runs, open_run, outputs_root, shown_path
from genlab.runs.headline import LOSS, headlines_of, named
from genlab.runs.selection import KEYS, Described, Wanted, in_order, remove, tag, why_not_removable
from genlab.text import printable

COLUMNS = ("experiment", "run", "status", "examples_seen", "scores", "training")
TAGGED = (*COLUMNS, "tags")


def runs(arguments: list[str]) -> int:
    """Prints one line for each run that is meant, the newest last; or tags or removes these runs."""
    options = parser().parse_args(arguments)
    wanted = wanted_of(options)
    everything = found_in(options.place)
    if not everything:
        where = options.place or outputs_root()
        print(f"No runs in {where} yet: genlab fit --config FILE makes one.", file=sys.stderr)
        return 0
    found = in_order(wanted.among(everything), options.sort)
    if options.sort not in KEYS and not named(options.sort).has_direction:
        what = f"! It is not known which side of {printable(options.sort)} is better: the lowest comes first."
        print(what, file=sys.stderr)
    if options.tag or options.untag or options.delete:
        if wanted.is_everything and not is_run(options.place):
            raise ValueError(
                "Say which runs are meant: a run's folder, or a condition such as --status failed."
            )
        return deleted(found, options.yes) if options.delete else tagged(found, options)
    if not found:
        print(f"None of {len(everything)} runs is like that.", file=sys.stderr)
        return 0
    metrics_table(list(map(row, found)), TAGGED if any(one.tags for one in found) else COLUMNS).show()
    return 0


def wanted_of(options: argparse.Namespace) -> Wanted:
    """Returns the conditions that were typed."""
    facts = (options.experiment, options.family, options.data, options.status)
    return Wanted(*facts, tuple(options.tagged), tuple(options.words))


def found_in(place: Path | None) -> list[Described]:
    """Returns the runs at a place, or the one that it is or lies in; names those that cannot be read."""
    with warnings.catch_warnings(record=True) as problems:
        warnings.simplefilter("always")
        if place is not None and (is_run(place) or not place.is_dir()):
            found = [open_run(place)]
        else:
            found = list_runs(place)
    for problem in problems:
        print(f"! Left out: {printable(str(problem.message))}", file=sys.stderr)
    return list(map(Described.of, found))


def is_run(place: Path | None) -> bool:
    """Returns whether a place is a run's own folder, or a file."""
    return place is not None and (Run(place).record.is_file() or place.is_file())


def tagged(found: list[Described], options: argparse.Namespace) -> int:
    """Adds and removes tags, and prints what each run has then."""
    for one in found:
        tags = tag(one.run, options.tag, options.untag)
        print(f"{printable(shown_path(one.run.path))}: {', '.join(tags) or 'no tags'}")
    return 0


def deleted(found: list[Described], is_sure: bool) -> int:
    """Removes runs once that has been confirmed; one that must stay is named, and the exit code says so."""
    reasons = {one.run.path: why_not_removable(one.run) for one in found}
    for path, reason in reasons.items():
        if reason:
            print(f"! {printable(shown_path(path))} stays: {reason}.", file=sys.stderr)
    removable = [one for one in found if not reasons[one.run.path]]
    if removable and (is_sure or confirmed(removable)):
        for one in removable:
            remove(one.run)
            print(f"removed {printable(shown_path(one.run.path))}")
    return EXIT_USAGE if len(removable) < len(found) else 0


def confirmed(found: list[Described]) -> bool:
    """Shows what would be removed and asks.

    Raises:
        ValueError: Nobody can answer.
    """
    if not sys.stdin.isatty():
        raise ValueError("--delete asks first, and nobody can answer here: add --yes.")
    metrics_table(list(map(row, found)), COLUMNS).show(sys.stderr)
    print(f"Remove {len(found)} runs with their checkpoints? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def row(one: Described) -> dict[str, Any]:
    """Returns what the list shows of a run."""
    seconds = one.record.get("training_seconds")
    return {
        "experiment": one.experiment,
        "run": one.run.name,
        "status": one.status,
        "examples_seen": one.record.get("examples_seen"),
        "scores": ", ".join(
            f"{name.removeprefix('val/')} {value:.4g}" for name, value in headline(one.scores)
        ),
        "training": f"{seconds:,.0f} s" if seconds else None,
        "tags": ", ".join(one.tags),
    }


def headline(scores: dict[str, float]) -> list[tuple[str, float]]:
    """Returns the two scores that a list has room for."""
    found = headlines_of(scores)
    shown = [headline for headline in found if headline is not LOSS] or found
    return [score for headline in shown[:2] if (score := headline.found_in(scores))]


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = Parser(
        prog="genlab runs",
        description="List runs; or tag them, or remove them. Conditions are joined by and.",
    )
    parser.add_argument(
        "place",
        type=read.existing,
        nargs="?",
        help="a run, or a folder of runs ($GENLAB_OUTPUTS or ./outputs)",
    )
    chosen = parser.add_argument_group("which runs")
    for name, example in (("experiment", "dcgan_*"), ("family", "GAN"), ("data", "digits")):
        chosen.add_argument(f"--{name}", type=read.words, help=f"only of this {name}, such as '{example}'")
    chosen.add_argument("--status", choices=STATUSES, help="only with this status")
    read.add_tagged(chosen)
    chosen.add_argument(
        "--words",
        type=read.words,
        nargs="+",
        default=[],
        help="only with these words in names, tags or error",
    )
    chosen.add_argument(
        "--sort",
        metavar="KEY",
        type=read.words,
        default="created",
        help=f"{', '.join(KEYS)}, or a score such as fid, the best first if known which is (created)",
    )
    done = parser.add_argument_group("what is done with them")
    done.add_argument("--tag", type=read.name, nargs="+", default=[], help="give them tags")
    done.add_argument("--untag", metavar="TAG", type=read.name, nargs="+", default=[], help="take tags away")
    done.add_argument("--delete", action="store_true", help="remove them, after a question; never a live one")
    done.add_argument("--yes", action="store_true", help="with --delete: without the question")
    return parser
