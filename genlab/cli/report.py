"""`genlab report`: the comparison as one HTML file to look at and to pass on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from genlab import files
from genlab.report.comparison import compare
from genlab.report.table import printable
from genlab.runs.folder import outputs_root


def report(arguments: list[str]) -> int:
    """Writes the file and prints where it is."""
    options = parser().parse_args(arguments)
    if not options.output.parent.is_dir():
        raise ValueError(f"-o names a file in {options.output.parent}, which is no folder: make it first.")
    comparison = compare(options.runs or [outputs_root()])
    from genlab.report.page import page

    files.write_text(options.output, page(comparison))
    for note in comparison.notes:
        print(f"! {printable(note)}", file=sys.stderr)
    print(f"{options.output} ({options.output.stat().st_size / 1e6:.1f} MB)")
    return 0


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = argparse.ArgumentParser(
        prog="genlab report",
        allow_abbrev=False,
        description="Compare runs in one HTML file that works offline.",
    )
    parser.add_argument(
        "runs", type=Path, nargs="*", help="run folders, folders of experiments, or roots (all outputs)"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("report.html"), help="the file (report.html)"
    )
    return parser
