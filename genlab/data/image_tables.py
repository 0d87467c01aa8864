"""Tables that say which captions or labels the images of a folder or an archive have. Imports no torch.

captions.tsv has lines of "name<TAB>caption". metadata.csv and metadata.jsonl are those of Hugging Face's
`imagefolder`: a column `file_name`, one of captions, in JSON a caption or a list of them, and any others,
such as one of labels; labels.csv holds labels alone. An image may have several captions and has one label.
The table lies in the folder, or one in each of its folders with names from there on; an archive's lies beside
it.
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

SHOWN = 5
"""Names that a message lists."""


@dataclass(frozen=True)
class Subject:
    """What a table is read for.

    Attributes:
        name: What an image has by it.
        tables: Names of the tables that are looked for.
        option: Names the column.
    """

    name: str
    tables: tuple[str, ...]
    option: str


CAPTION = Subject("caption", ("captions.tsv", "metadata.csv", "metadata.jsonl"), "caption_column")
LABEL = Subject("label", ("labels.csv", "metadata.csv", "metadata.jsonl"), "label_column")


@dataclass
class Told:
    """What the tables of some images say.

    Attributes:
        tables: Their names, from the folder on.
        of_images: The captions or labels of each image, in the order of the images and of the rows.
        alone: Names of the images without one.
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
    return _whole(find_captions(source, column), source, CAPTION)


def label_by_table(source: Source, column: str) -> None:
    """Gives images the labels of a table in place of those of their folders.

    Classes are sorted by name, and by number where all are whole numbers.

    Args:
        source: The images, whose labels and classes are set.
        column: Name of the column of labels.

    Raises:
        BadSource: As for captions; where an image has two labels, or all have the same one.
    """
    of_images = _whole(_find(source, column, LABEL), source, LABEL)
    two = [name for name, labels in zip(source.names, of_images, strict=True) if len({*labels}) > 1]
    if two:
        raise BadSource(f"The table of {source.path} has two labels of {first_of(two)}; keep one row of each")
    names = [labels[0].strip() for labels in of_images]
    classes = sorted({*names})
    if all(name.isdecimal() for name in classes):
        classes.sort(key=int)
    if len(classes) < 2:
        raise BadSource(
            f"All images of {source.path} have the label {shortened(classes[0])!r} in the column {column!r}; "
            "name another column by label_column, or leave it out"
        )
    number = {name: label for label, name in enumerate(classes)}
    source.labels, source.classes = [number[name] for name in names], classes


def find_captions(source: Source, column: str = "text") -> Told | None:
    """Returns what the tables of some images say, None where there is no table.

    Args:
        source: The images.
        column: Name of the column of captions in metadata.csv and metadata.jsonl.

    Raises:
        BadSource: Where a table cannot be read or lacks a column, with the place.
    """
    if source.captions is not None:
        return Told([source.path.name], source.captions, [], [])
    return _find(source, column, CAPTION)


def _whole(found: Told | None, source: Source, subject: Subject) -> list[list[str]]:
    """Returns what tables say where every image is told of and nothing else is."""
    if found is None:
        raise BadSource(_missing(source, subject))
    faults = [
        *_fault(f"{subject.name}s of {len(found.strangers)} files that are no images", found.strangers),
        *_fault(f"no {subject.name} for {len(found.alone)} images", found.alone),
    ]
    if faults:
        raise BadSource(f"{', '.join(found.tables)} of {source.path}: {'; '.join(faults)}; correct the rows")
    return found.of_images


def _find(source: Source, column: str, subject: Subject) -> Told | None:
    folder, tables = _tables(source, subject)
    if not tables:
        return None
    rows: dict[str, list[str]] = {}
    for table in tables:
        inside = PurePosixPath(table.parent.relative_to(folder).as_posix())
        for place, name, value in _rows(table, column, subject):
            if not value.strip():
                raise BadSource(
                    f"{table} line {place}: the {subject.name} of {shortened(name)!r} is empty; write one"
                )
            rows.setdefault(str(inside / name), []).append(value)
    told = _matched(rows, source.names)
    known = {name for name, _ in told.values()}
    return Told(
        [str(table.relative_to(folder)) for table in tables],
        [told[name][1] if name in told else [] for name in source.names],
        [name for name in source.names if name not in told],
        [name + nearest(name, source.names) for name in rows if name not in known],
    )


def _matched(rows: dict[str, list[str]], names: list[str]) -> dict[str, tuple[str, list[str]]]:
    """Returns the name that a table calls an image by, whole or without folders, and what it says of it."""
    last = {name: PurePosixPath(name).name for name in names}
    counts = Counter(last.values())
    called = {name: name if name in rows or counts[last[name]] > 1 else last[name] for name in names}
    return {name: (key, rows[key]) for name, key in called.items() if key in rows}


def _tables(source: Source, subject: Subject) -> tuple[Path, list[Path]]:
    """Returns the folder that names are given from, and the tables in it, or in its folders."""
    folder = source.path if source.path.is_dir() else source.path.parent
    found = [folder / name for name in subject.tables if (folder / name).exists()]
    if len(found) > 1:
        both = " and ".join(table.name for table in found)
        raise BadSource(f"{folder} holds {both}, and only one can be right; remove the other")
    if not found and source.path.is_dir():
        found = sorted(table for name in subject.tables for table in folder.glob(f"*/{name}"))
    return folder, found


def _missing(source: Source, subject: Subject) -> str:
    folder, _ = _tables(source, subject)
    near = [
        f" {name}?{hint}"
        for name in sorted(path.name for path in folder.iterdir())
        if (hint := nearest(name, subject.tables))
    ]
    where = "in" if source.path.is_dir() else "beside"
    names = f"{', '.join(subject.tables[:-1])} or {subject.tables[-1]}"
    return f"There is no {names} {where} {source.path};{''.join(near[:1])} add one"


def _rows(table: Path, column: str, subject: Subject) -> Iterator[tuple[int, str, str]]:
    """Yields the line, the file's name and the caption or label of each row of a table."""
    if table.suffix == ".tsv":
        return _tab_rows(table)
    return (_csv_rows if table.suffix == ".csv" else _json_rows)(table, column, subject)


def _tab_rows(table: Path) -> Iterator[tuple[int, str, str]]:
    for place, line in enumerate(read_lines(table), start=1):
        name, tab, caption = line.partition("\t")
        if line and not tab:
            raise BadSource(f"{table} line {place} is no name<TAB>caption: {shortened(line, 40)!r}")
        if line:
            yield place, name, caption


def _csv_rows(table: Path, column: str, subject: Subject) -> Iterator[tuple[int, str, str]]:
    reader = csv.DictReader(io.StringIO(read_utf8(table), newline=""), strict=True)
    try:
        _require_columns(table, 1, list(reader.fieldnames or []), column, subject)
        for row in reader:
            if None in row or None in row.values():
                num = len(reader.fieldnames or [])
                raise BadSource(
                    f"{table} line {reader.line_num} has not the {num} cells of the first line; quote commas"
                )
            yield reader.line_num, row["file_name"], row[column]
    except csv.Error as error:
        raise BadSource(f"{table} line {reader.line_num} is no CSV ({error}); correct it") from None


def _json_rows(table: Path, column: str, subject: Subject) -> Iterator[tuple[int, str, str]]:
    for place, line in enumerate(read_lines(table), start=1):
        if not line.strip():
            continue
        row = _json_row(table, place, line)
        _require_columns(table, place, list(row), column, subject)
        told = row[column] if isinstance(row[column], list) else [row[column]]
        if subject is LABEL:  # which may be a number
            told = [str(value) if isinstance(value, int) else value for value in told]
        if not told or not all(isinstance(text, str) for text in [row["file_name"], *told]):
            raise BadSource(f"{table} line {place}: file_name must be a text, {column} one or a list of them")
        for text in told:
            yield place, row["file_name"], text


def _json_row(table: Path, place: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise BadSource(f"{table} line {place} is no JSON object: {shortened(line, 40)!r}")
    return row


def _require_columns(table: Path, place: int, columns: list[str], column: str, subject: Subject) -> None:
    for name in ("file_name", column):
        if name not in columns:
            there = ", ".join(map(shortened, columns[:SHOWN])) or "nothing"
            raise BadSource(
                f"{table} line {place} has no column {name!r}, but {there}.{nearest(name, columns)} "
                f"Name the {subject.name}s' column by {subject.option}"
            )


def _fault(what: str, names: list[str]) -> list[str]:
    return [f"{what}: {first_of(names)}"] if names else []


def first_of(names: list[str]) -> str:
    """Returns the first five of some names in one line."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(shortened, names[:SHOWN])) + more
