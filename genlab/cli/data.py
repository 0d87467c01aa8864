"""`genlab data check`: what is in images or texts, before a training needs to know."""

from __future__ import annotations

import argparse

from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.errors import EXIT_DATA


def data(arguments: list[str]) -> int:
    """Lists what a training would find: counts, sizes, formats, conversions, bad files, duplicates."""
    options = parser().parse_args(arguments)
    from genlab.data import check, check_text

    if options.source_path is not None or check_text.is_text(options.path):
        text = check_text.check(options.path, options.source_path)
        check_text.print_report(text)
        return 0 if text.ok else EXIT_DATA
    report = check.check(options.path, caption_column=options.caption_column)
    check.print_report(report)
    return 0 if report.ok else EXIT_DATA


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = Parser(prog="genlab data", description="Look at data before use.")
    commands = parser.add_subparsers(required=True, metavar="check")
    checker = commands.add_parser("check", help="list counts, sizes, formats, bad files and duplicates")
    checker.add_argument(
        "path",
        type=read.existing,
        help="a folder, zip or tar of images; a text or a folder of .txt files; a .tsv of sentence pairs",
    )
    checker.add_argument(
        "--source_path",
        type=read.file,
        help="of pairs in two files, the one with the sentences to start from",
    )
    checker.add_argument(
        "--caption_column",
        default="text",
        help="the column of captions in a metadata.csv or metadata.jsonl (text)",
    )
    return parser
