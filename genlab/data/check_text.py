"""What is in texts and in pairs of sentences, and what training would make of it. Imports no torch."""

from __future__ import annotations

import os
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np

from genlab.data.check import counted, listed
from genlab.data.decode import EXTENSIONS
from genlab.data.sources import BadSource, opened
from genlab.data.utf8 import MARK, blocks_of, read_lines, unreadable, with_line_feeds

RARE = 10
"""A character that comes no more often is rare."""

QUANTILES = (0.5, 0.9, 0.99, 1.0)

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass
class TextReport:
    """What a check of texts found.

    Attributes:
        path: What was checked.
        files: Names of the files.
        num_bytes: Of all files.
        characters: How often there is each character of running text, whose lines end in line feeds.
        line_ends: How many lines of the files end in LF, in CR LF and in CR.
        longest: Characters of the longest line, and where it is.
        marks: Files that begin with a byte order mark.
        bad: Name of and reason against each file that is not UTF-8 or cannot be read.
        pairs: What was found of the lines as pairs of sentences, None of running text.
    """

    path: str
    files: list[str] = field(default_factory=list)
    num_bytes: int = 0
    characters: Counter[str] = field(default_factory=Counter)
    line_ends: Counter[str] = field(default_factory=Counter)
    longest: tuple[int, str] = (0, "")
    marks: list[str] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    pairs: PairReport | None = None

    @property
    def ok(self) -> bool:
        """Whether training would start, where there is enough of it."""
        return not self.bad and bool(self.characters) and (self.pairs is None or not self.pairs.problem)


@dataclass
class PairReport:
    """What a check of sentence pairs found.

    Attributes:
        problem: Why they are no pairs, "" where they are.
        num: Pairs.
        empty: How many sources, and how many targets, say nothing.
        quantiles: Of the lengths of sources and of targets in characters, at `QUANTILES`.
        num_equal: Pairs that an earlier one is equal to.
        num_equal_sources: Sources that an earlier one is equal to.
    """

    problem: str = ""
    num: int = 0
    empty: tuple[int, int] = (0, 0)
    quantiles: tuple[list[int], list[int]] = ([], [])
    num_equal: int = 0
    num_equal_sources: int = 0


def is_text(path: Path) -> bool:
    """Returns whether a file or folder is to be looked at as text: no images, no archive, no other bytes."""
    if path.is_dir():
        endings = {Path(name).suffix.lower() for _, _, names in os.walk(path) for name in names}
        return ".txt" in endings and endings.isdisjoint(EXTENSIONS)
    if path.suffix.lower() in EXTENSIONS or zipfile.is_zipfile(path):
        return False
    with path.open("rb") as file:
        begin = file.read(2**16)
    return begin.startswith(_UTF16) or (b"\0" not in begin and not (begin and tarfile.is_tarfile(path)))


def check(path: Path, source_path: Path | None = None) -> TextReport:
    """Reads a text once, in little memory, or pairs of sentences, and returns what was found.

    Args:
        path: A text; a folder of .txt files; a .tsv file of pairs; or the file of the targets.
        source_path: The file of the sources, where pairs lie in two files.

    Raises:
        BadSource: A pair's file is a folder.
    """
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if source_path is not None:
        if path.is_dir():
            raise BadSource(f"{path} is a folder; give the file of the sentences to arrive at")
        files = [source_path, path]
    report = TextReport(str(path))
    for file in files:
        _read_into(report, file, path if path.is_dir() else None)
    if not report.bad and (source_path is not None or path.suffix.lower() == ".tsv"):
        report.pairs = check_pairs(path, source_path)
    return report


def check_pairs(path: Path, source_path: Path | None = None) -> PairReport:
    """Returns what two files of sentences, or one table, hold as pairs.

    Raises:
        BadSource: A file cannot be read.
    """
    rows = [line.split("\t") for line in read_lines(path)] if source_path is None else []
    wrong = [number for number, row in enumerate(rows, start=1) if len(row) != 2]
    if wrong:
        return PairReport(f"{len(wrong)} lines without exactly one tab, the first is line {wrong[0]}")
    if source_path is None:
        sources, targets = [row[0] for row in rows], [row[1] for row in rows]
    else:
        sources, targets = read_lines(source_path), read_lines(path)
    if len(sources) != len(targets):
        first, second = f"{len(sources):,} lines in {source_path}", f"{len(targets):,} in {path}"
        return PairReport(f"{first}, but {second}: line i of one must be a pair with line i of the other")
    return PairReport(
        num=len(sources),
        empty=(_num_empty(sources), _num_empty(targets)),
        quantiles=(_quantiles(sources), _quantiles(targets)),
        num_equal=len(sources) - len(set(zip(sources, targets, strict=True))),
        num_equal_sources=len(sources) - len(set(sources)),
    )


def print_report(report: TextReport, file: TextIO | None = None) -> None:
    """Prints a report for a person."""
    for line in _lines(report):
        print(line, file=file or sys.stdout)


def _read_into(report: TextReport, file: Path, folder: Path | None) -> None:
    name = str(file.relative_to(folder)) if folder is not None else file.name
    report.files.append(name)
    try:
        with opened(file, root=None if folder is None else os.path.realpath(folder)) as stream:
            report.num_bytes += os.fstat(stream.fileno()).st_size
            line, num, begins = 1, 0, True  # the line that the next block goes on in, how long it is so far
            for block in blocks_of(stream, name):
                if begins and block.startswith(MARK):
                    report.marks.append(name)
                text = block.removeprefix(MARK) if begins else block
                line, num = _count_into(report, name, text, line, num)
                begins = begins and not block
    except OSError as error:
        report.bad.append((name, str(unreadable(file, error))))
    except BadSource as error:
        report.bad.append((name, str(error).removeprefix(f"{name} ")))


def _count_into(report: TextReport, name: str, block: str, line: int, num: int) -> tuple[int, int]:
    """Counts a block of a text; returns the line that it ends in, and how long that is so far."""
    pairs = block.count("\r\n")
    ends = {"LF": block.count("\n") - pairs, "CR LF": pairs, "CR": block.count("\r") - pairs}
    report.line_ends.update({end: count for end, count in ends.items() if count})
    codes = np.frombuffer(with_line_feeds(block).encode("utf-32-le"), "<u4")
    found, counts = np.unique(codes, return_counts=True)
    report.characters.update(dict(zip(map(chr, found.tolist()), counts.tolist(), strict=True)))
    breaks = np.flatnonzero(codes == ord("\n"))
    lengths = np.diff(np.concatenate([[-1 - num], breaks, [len(codes)]])) - 1
    place = int(lengths.argmax())
    if lengths[place] > report.longest[0]:
        report.longest = int(lengths[place]), f"line {line + place:,} of {name}"
    return line + len(breaks), int(lengths[-1])


def _num_empty(sentences: Sequence[str]) -> int:
    return sum(not sentence.strip() for sentence in sentences)


def _quantiles(sentences: Sequence[str]) -> list[int]:
    lengths = sorted(map(len, sentences))
    return [lengths[min(len(lengths) - 1, int(q * len(lengths)))] for q in QUANTILES] if lengths else []


def _lines(report: TextReport) -> list[str]:
    lines = _lines_of_text(report) if report.characters else [f"{report.path}: nothing was read"]
    lines += listed("unusable", [f"{name}: {reason}" for name, reason in report.bad])
    lines += [] if report.pairs is None else _lines_of_pairs(report.pairs)
    return [*lines, "ok" if report.ok else f"not ok: {_remedy(report)}"]


def _lines_of_text(report: TextReport) -> list[str]:
    num, files = report.characters.total(), f"{len(report.files)} file{'s' * (len(report.files) != 1)}"
    lines = [f"{report.path}: {files}, {report.num_bytes:,} bytes, {num:,} characters"]
    lines += counted("line ends", dict(report.line_ends))
    if report.line_ends.keys() - {"LF"} and report.pairs is None:
        lines.append("all of them are read as LF")
    lines.append(f"longest line: {report.longest[0]:,} characters, {report.longest[1]}")
    lines += listed("byte order marks, which are dropped", report.marks)
    by_number = sorted(report.characters.items(), key=lambda found: found[::-1])
    rare = {repr(letter): n for letter, n in by_number if n <= RARE}
    lines.append(f"different characters: {len(report.characters):,}, {len(rare):,} of them rare")
    return lines + counted(f"rare, at most {RARE} times", rare)


def _lines_of_pairs(pairs: PairReport) -> list[str]:
    if pairs.problem:
        return [f"pairs: {pairs.problem}"]
    lines = [f"pairs: {pairs.num:,}"]
    for name, lengths in zip(("sources", "targets"), pairs.quantiles, strict=True):
        told = [f"{q:.0%} {length:,}" for q, length in zip(QUANTILES, lengths, strict=bool(lengths))]
        lines += [f"characters of {name}, at most: {', '.join(told)}"] if told else []
    counts = {"sources": pairs.empty[0], "targets": pairs.empty[1]}
    lines += counted("empty", {name: num for name, num in counts.items() if num})
    again = {"pairs": pairs.num_equal, "sources": pairs.num_equal_sources}
    return [*lines, *counted("equal to an earlier one", {name: num for name, num in again.items() if num})]


def _remedy(report: TextReport) -> str:
    if report.bad:
        return f"convert to UTF-8, or remove, the {len(report.bad)} unusable files"
    return "make them pairs" if report.pairs is not None and report.pairs.problem else "there is no text"
