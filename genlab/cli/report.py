"""`genlab report`: the comparison as one HTML file to look at and to pass on."""

from __future__ import annotations

import sys
from pathlib import Path

from genlab import files
from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.report.comparison import compare
from genlab.runs.folder import outputs_root
from genlab.text import printable


def report(arguments: list[str]) -> int:
    """Writes the file and prints where it is."""
    options = parser().parse_args(arguments)
    if not options.output.parent.is_dir():
        raise ValueError(f"-o names a file in {options.output.parent}, which is no folder: make it first.")
    comparison = compare(options.runs or [outputs_root()], tagged=options.tagged)
    from genlab.report.page import page

    files.write_text(options.output, page(comparison))
    for note in comparison.notes:
        print(f"! {printable(note)}", file=sys.stderr)
    print(f"{options.output} ({options.output.stat().st_size / 1e6:.1f} MB)")
    return 0


def parser() -> Parser:
    """Returns the command's options."""
    parser = Parser(
        prog="genlab report",
        description="Compare runs in one HTML file that works offline.",
    )
    parser.add_argument(
        "runs",
        type=read.path,
        nargs="*",
        help="run folders, folders of experiments, or roots (all outputs)",
    )
    read.add_tagged(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=read.output_file(),
        default=Path("report.html"),
        help="the file (report.html)",
    )
    return parser
