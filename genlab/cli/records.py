"""`genlab records`: the numbers of runs without their weights, small enough for a repository."""

from __future__ import annotations

import sys
from collections.abc import Sequence

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
    films = _films(gathered.runs) if options.samples else {}
    kept = [
        keep_record(trained.run, options.output, films.get(trained.name, ())) for trained in gathered.runs
    ]
    size = sum(file.stat().st_size for run in kept for file in run.path.rglob("*") if file.is_file())
    print(f"{shown_path(options.output)}: {len(kept)} records, {size / 1e6:.2f} MB")
    return 0


def _films(runs: Sequence[Trained]) -> dict[str, list[str]]:
    """Returns the samples through training of the first run of each experiment that has some, by its name."""
    films: dict[str, list[str]] = {}
    seen = set()
    for trained in runs:
        if trained.experiment not in seen and (stored := stored_samples(trained)):
            seen.add(trained.experiment)
            films[trained.name] = [file for _, file in stored]
    return films


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
