"""`genlab compare`: many runs in one table, without importing torch."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import sys
import textwrap
from pathlib import Path

from genlab import files
from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.report.columns import COLUMNS, Column, chosen
from genlab.report.comparison import Comparison
from genlab.report.comparison import compare as compared
from genlab.report.forms import as_markdown, csv_table, groups, markdown_table, text_table
from genlab.report.verdict import legend, remarks, short_verdict
from genlab.runs.folder import outputs_root
from genlab.text import printable

_BLOCK = re.compile(
    r"(?P<begin><!-- genlab compare (?P<options>[^\n]*?) -->\n).*?(?P<end><!-- end of genlab compare -->)",
    re.DOTALL,
)
"""A place in a Markdown file for a table, between the command that makes it and its end."""


def compare(arguments: list[str]) -> int:
    """Prints the comparison in the form that was asked for."""
    options = parser().parse_args(arguments)
    if options.refresh:
        files.write_text(options.refresh, refreshed(options.refresh))
        print(f"{options.refresh} has the tables of today's records.")
        return 0
    comparison, columns = asked(options)
    if options.csv:
        print(csv_table(comparison, columns), end="")
        tell(comparison.notes)
    elif options.markdown:
        print(markdown(comparison, columns, options), end="")
    else:
        show(comparison, columns, *told(comparison, options.verdict))
    return 0


def asked(options: argparse.Namespace) -> tuple[Comparison, list[Column] | None]:
    """Returns the comparison of the runs that were named, and the columns that were asked for."""
    comparison = compared(options.runs or [outputs_root()], options.rank, options.tagged)
    return comparison, chosen(options.columns.replace(" ", "").split(",")) if options.columns else None


def markdown(comparison: Comparison, columns: list[Column] | None, options: argparse.Namespace) -> str:
    """Returns the table and its remarks, and the textbook's adjectives where they are wanted."""
    first, below = told(comparison, options.verdict)
    table = markdown_table(comparison, columns, below, first)
    return f"{table}\n{adjectives(comparison)}" if options.adjectives else table


def told(comparison: Comparison, most: int | None) -> tuple[list[str], list[str]]:
    """Returns the sentences above and below a table: a short verdict and the legend, or all of them below."""
    if most is None:
        return [], remarks(comparison)
    return short_verdict(comparison, most), legend(comparison)


def refreshed(file: Path) -> str:
    """Returns a Markdown file's text with every table made anew by the command in the comment above it.

    Raises:
        ValueError: The file has no place for a table.
    """

    def made(place: re.Match[str]) -> str:
        options = parser().parse_args(shlex.split(place["options"]))
        comparison, columns = asked(options)
        return f"{place['begin']}\n{markdown(comparison, columns, options)}\n{place['end']}"

    try:
        before = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no text in UTF-8.") from None
    text, num = _BLOCK.subn(made, before)
    if not num:
        raise ValueError(
            f"{file} has no place for a table. Put one in, with the options in place of ...: "
            "<!-- genlab compare ... -->, a line break, <!-- end of genlab compare -->."
        )
    return text


def show(
    comparison: Comparison, columns: list[Column] | None, first: list[str], sentences: list[str]
) -> None:
    """Prints a table of each group between sentences: as wide as the terminal, or all of it into a pipe."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    say(first, width)
    if first:
        print()
    for group, wanted in groups(comparison, columns):
        text_table(group, wanted, width).show()
        print()
    say(sentences, width)


def say(sentences: list[str], width: int | None) -> None:
    """Prints sentences, each from a line's beginning."""
    for line in map(printable, sentences):
        print(textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False) if width else line)


def adjectives(comparison: Comparison) -> str:
    """Returns the textbook's adjectives beside the measurements, as Markdown."""
    from genlab.report.adjectives import as_table

    table = as_table(comparison)
    return "" if table is None else as_markdown(table) + "\n"


def tell(notes: list[str]) -> None:
    """Prints notes where they are in no table's way."""
    for note in notes:
        print(f"! {printable(note)}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = Parser(
        prog="genlab compare",
        description="Put runs side by side: a row for each experiment and way to sample, over its seeds.",
        epilog="Columns: " + ", ".join(column.key for column in COLUMNS),
    )
    parser.add_argument(
        "runs",
        type=read.path,
        nargs="*",
        help="run folders, folders of experiments, or roots ($GENLAB_OUTPUTS or ./outputs)",
    )
    read.add_tagged(parser)
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--csv", action="store_true", help="every number, with the ends of its interval")
    forms.add_argument("--markdown", action="store_true", help="the table and its remarks for a README")
    parser.add_argument("--columns", type=read.words, help="only these, separated by commas")
    parser.add_argument(
        "--rank",
        metavar="COLUMN",
        type=read.words,
        help="rank by this column; refused where it would be unfair",
    )
    parser.add_argument(
        "--adjectives",
        action="store_true",
        help="with --markdown: what textbooks say, beside what was measured",
    )
    parser.add_argument(
        "--verdict",
        metavar="N",
        type=read.count(0),
        help="the N sentences that say most above the table, in place of all remarks below it (0: none)",
    )
    parser.add_argument(
        "--refresh",
        metavar="FILE",
        type=read.file,
        help="make the tables in a Markdown file anew, each between <!-- genlab compare OPTIONS --> and "
        "<!-- end of genlab compare -->",
    )
    return parser
