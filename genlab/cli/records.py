"""`genlab records`: the numbers of runs without their weights, small enough for a repository."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.report.galleries import stored_samples
from genlab.report.gather import Trained, gather
from genlab.runs.folder import shown_path
from genlab.runs.records import keep_record
from genlab.text import printable


def records(arguments: list[str]) -> int:
    """Copies the records and prints where they are."""
    options = parser().parse_args(arguments)
    gathered = gather(options.runs)
    for problem in gathered.problems:
        print(f"! {printable(problem)}", file=sys.stderr)
    if not gathered.runs:
        raise ValueError(f"There are no runs in {', '.join(map(str, options.runs))}.")
    filmed = set(map(id, _first_of_each(gathered.runs))) if options.samples else set()
    kept = [
        keep_record(trained.run, options.output, _samples_of(trained) if id(trained) in filmed else ())
        for trained in gathered.runs
    ]
    size = sum(file.stat().st_size for run in kept for file in run.path.rglob("*") if file.is_file())
    print(f"{shown_path(options.output)}: {len(kept)} records, {size / 1e6:.2f} MB")
    return 0


def _first_of_each(runs: Sequence[Trained]) -> Iterator[Trained]:
    """Yields the first run of each experiment that has samples."""
    seen = set()
    for trained in runs:
        if trained.experiment not in seen and stored_samples(trained):
            seen.add(trained.experiment)
            yield trained


def _samples_of(trained: Trained) -> list[str]:
    return [file for _, file in stored_samples(trained)]


def parser() -> Parser:
    """Returns the command's options."""
    parser = Parser(
        prog="genlab records",
        description="Copy what `genlab compare` and `report` read of runs: no weights, some kilobytes each. "
        "The copies can be compared like the runs.",
    )
    parser.add_argument(
        "runs", type=read.path, nargs="+", help="run folders, folders of experiments, benches, or roots"
    )
    parser.add_argument("-o", "--output", type=read.output_folder, required=True, help="folder of the copies")
    parser.add_argument(
        "--samples",
        action="store_true",
        help="also the samples through training of one run of each experiment, which the report shows",
    )
    return parser
