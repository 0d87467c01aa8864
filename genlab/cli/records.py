"""`genlab records`: the numbers of runs without their weights, small enough for a repository."""

from __future__ import annotations

import sys

from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.report.gather import gather
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
    kept = [keep_record(trained.run, options.output) for trained in gathered.runs]
    size = sum(file.stat().st_size for run in kept for file in run.path.iterdir())
    print(f"{shown_path(options.output)}: {len(kept)} records, {size / 1e6:.2f} MB")
    return 0


def parser() -> Parser:
    """Returns the command's options."""
    parser = Parser(
        prog="genlab records",
        description="Copy what `genlab compare` and `report` read of runs: no weights, no pictures, some "
        "kilobytes each. The copies can be compared like the runs.",
    )
    parser.add_argument(
        "runs", type=read.path, nargs="+", help="run folders, folders of experiments, benches, or roots"
    )
    parser.add_argument("-o", "--output", type=read.output_folder, required=True, help="folder of the copies")
    return parser
