"""`genlab data check`: what is in a folder or archive of images, before a training needs to know."""

from __future__ import annotations

from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.errors import EXIT_DATA


def data(arguments: list[str]) -> int:
    """Lists what a training would find: counts, sizes, formats, conversions, bad files, duplicates."""
    parser = Parser(prog="genlab data", description="Look at images before use.")
    commands = parser.add_subparsers(required=True, metavar="check")
    checker = commands.add_parser("check", help="list counts, sizes, formats, bad files and duplicates")
    checker.add_argument("path", type=read.existing, help="a folder, zip or tar of images")
    options = parser.parse_args(arguments)
    from genlab.data.check import check, print_report

    report = check(options.path)
    print_report(report)
    return 0 if report.ok else EXIT_DATA
