"""Tables that say which captions the images of a folder or an archive have. Imports no torch.

captions.tsv has lines of "name<TAB>caption". metadata.csv and metadata.jsonl are those of Hugging Face's
`imagefolder`: a column `file_name` and one of captions, in JSON a caption or a list of them. An image may
have several rows. The table lies in the folder, or one in each of its folders with names from there on; that
of an archive lies beside it.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from genlab.data.sources import BadSource, Source
from genlab.data.utf8 import read_lines, read_utf8
from genlab.text import nearest, shortened

TABLES = ("captions.tsv", "metadata.csv", "metadata.jsonl")
"""Names of the tables that are looked for."""

SHOWN = 5
"""Names that a message lists."""


@dataclass
class Captions:
    """What the tables of some images say.

    Attributes:
        tables: Their names, from the folder on.
        of_images: The captions of each image, in the order of the images and of the rows.
        alone: Names of the images without a caption.
        strangers: Names in the tables that no image has, with a question after those that resemble one.
    """

    tables: list[str]
    of_images: list[list[str]]
    alone: list[str]
    strangers: list[str]


def read_captions(source: Source, column: str = "text") -> list[list[str]]:
    """Returns the captions of each image.

    Raises:
        BadSource: Where there is no table or a wrong row; where an image has no caption, or a caption no
            image, with the first five names.
    """
    found = find_captions(source, column)
    if found is None:
        raise BadSource(_missing(source))
    faults = [
        *_fault(f"captions of {len(found.strangers)} files that are no images", found.strangers),
        *_fault(f"no caption for {len(found.alone)} images", found.alone),
    ]
    if faults:
        raise BadSource(f"{', '.join(found.tables)} of {source.path}: {'; '.join(faults)}; correct the rows")
    return found.of_images


def find_captions(source: Source, column: str = "text") -> Captions | None:
    """Returns what the tables of some images say, None where there is no table.

    Args:
        source: The images.
        column: Name of the column of captions in metadata.csv and metadata.jsonl.

    Raises:
        BadSource: Where a table cannot be read or lacks a column, with the place.
    """
    if source.captions is not None:
        return Captions([source.path.name], source.captions, [], [])
    folder, tables = _tables(source)
    if not tables:
        return None
    rows: dict[str, list[str]] = {}
    for table in tables:
        inside = PurePosixPath(table.parent.relative_to(folder).as_posix())
        for place, name, caption in _rows(table, column):
            if not caption.strip():
                raise BadSource(
                    f"{table} line {place}: the caption of {shortened(name)!r} is empty; write one"
                )
            rows.setdefault(str(inside / name), []).append(caption)
    captions = _matched(rows, source.names)
    known = {name for name, _ in captions.values()}
    return Captions(
        [str(table.relative_to(folder)) for table in tables],
        [captions[name][1] if name in captions else [] for name in source.names],
        [name for name in source.names if name not in captions],
        [name + nearest(name, source.names) for name in rows if name not in known],
    )


def _matched(rows: dict[str, list[str]], names: list[str]) -> dict[str, tuple[str, list[str]]]:
    """Returns the name that a table calls an image by, whole or without folders, and its captions."""
    last = {name: PurePosixPath(name).name for name in names}
    counts = Counter(last.values())
    called = {name: name if name in rows or counts[last[name]] > 1 else last[name] for name in names}
    return {name: (key, rows[key]) for name, key in called.items() if key in rows}


def _tables(source: Source) -> tuple[Path, list[Path]]:
    """Returns the folder that names are given from, and the tables in it, or in its folders."""
    folder = source.path if source.path.is_dir() else source.path.parent
    found = [folder / name for name in TABLES if (folder / name).exists()]
    if len(found) > 1:
        both = " and ".join(table.name for table in found)
        raise BadSource(f"{folder} holds {both}, and only one can be right; remove the other")
    if not found and source.path.is_dir():
        found = sorted(table for name in TABLES for table in folder.glob(f"*/{name}"))
    return folder, found


def _missing(source: Source) -> str:
    folder, _ = _tables(source)
    near = [
        f" {name}?{hint}"
        for name in sorted(path.name for path in folder.iterdir())
        if (hint := nearest(name, TABLES))
    ]
    where = "in" if source.path.is_dir() else "beside"
    names = f"{', '.join(TABLES[:-1])} or {TABLES[-1]}"
    return f"There is no {names} {where} {source.path};{''.join(near[:1])} add one"


def _rows(table: Path, column: str) -> Iterator[tuple[int, str, str]]:
    """Yields the line, the file's name and the caption of each row of a table."""
    read = {".tsv": _tab_rows, ".csv": _csv_rows, ".jsonl": _json_rows}[table.suffix]
    return read(table, column)


def _tab_rows(table: Path, column: str) -> Iterator[tuple[int, str, str]]:
    for place, line in enumerate(read_lines(table), start=1):
        name, tab, caption = line.partition("\t")
        if line and not tab:
            raise BadSource(f"{table} line {place} is no name<TAB>caption: {shortened(line, 40)!r}")
        if line:
            yield place, name, caption


def _csv_rows(table: Path, column: str) -> Iterator[tuple[int, str, str]]:
    reader = csv.DictReader(io.StringIO(read_utf8(table), newline=""), strict=True)
    try:
        _require_columns(table, 1, list(reader.fieldnames or []), column)
        for row in reader:
            if None in row or None in row.values():
                num = len(reader.fieldnames or [])
                raise BadSource(
                    f"{table} line {reader.line_num} has not the {num} cells of the first line; quote commas"
                )
            yield reader.line_num, row["file_name"], row[column]
    except csv.Error as error:
        raise BadSource(f"{table} line {reader.line_num} is no CSV ({error}); correct it") from None


def _json_rows(table: Path, column: str) -> Iterator[tuple[int, str, str]]:
    for place, line in enumerate(read_lines(table), start=1):
        if not line.strip():
            continue
        row = _json_row(table, place, line)
        _require_columns(table, place, list(row), column)
        captions = row[column] if isinstance(row[column], list) else [row[column]]
        if not captions or not all(isinstance(text, str) for text in [row["file_name"], *captions]):
            raise BadSource(f"{table} line {place}: file_name must be a text, {column} one or a list of them")
        for caption in captions:
            yield place, row["file_name"], caption


def _json_row(table: Path, place: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise BadSource(f"{table} line {place} is no JSON object: {shortened(line, 40)!r}")
    return row


def _require_columns(table: Path, place: int, columns: list[str], column: str) -> None:
    for name in ("file_name", column):
        if name not in columns:
            there = ", ".join(map(shortened, columns[:SHOWN])) or "nothing"
            raise BadSource(
                f"{table} line {place} has no column {name!r}, but {there}.{nearest(name, columns)} "
                "Name the captions' column by caption_column"
            )


def _fault(what: str, names: list[str]) -> list[str]:
    return [f"{what}: {first_of(names)}"] if names else []


def first_of(names: list[str]) -> str:
    """Returns the first five of some names in one line."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(shortened, names[:SHOWN])) + more
