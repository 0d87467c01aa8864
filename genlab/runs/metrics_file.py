"""A run's measurements over time: one JSON line a time, and the same as one CSV table."""

from __future__ import annotations

import csv
import errno
import io
import json
import warnings
from pathlib import Path
from typing import Any

from genlab import files
from genlab.errors import is_of_storage
from genlab.runs.folder import Run, in_todays_words

_POSITION = ("examples_seen", "step", "seconds")


class MetricsFile:
    """The metrics of one run: appended while it trains, cut back when it is resumed.

    Args:
        run: Where metrics.jsonl and metrics.csv lie.
    """

    def __init__(self, run: Run) -> None:
        self.jsonl = run.metrics_jsonl
        self.csv = run.metrics_csv
        self._waiting = b""

    def write(self, values: dict[str, float], examples_seen: int, step: int, seconds: float) -> bool:
        """Appends one line, with null for what is not finite.

        Returns:
            Whether it is in the file. Where the storage is full it waits, and comes with a later one.
        """
        position = {"examples_seen": examples_seen, "step": step, "seconds": round(seconds, 3)}
        line = json.dumps(files.plain({**position, **values}), allow_nan=False) + "\n"
        self._waiting += line.encode()
        try:
            _append(self.jsonl, self._waiting)
        except OSError as error:
            if not is_of_storage(error):
                raise
            return False
        self._waiting = b""
        return True

    def write_csv(self) -> None:
        """Writes all lines as one table; a column for every metric, in the order of first appearance."""
        rows = read_metrics(self.jsonl)
        columns = dict.fromkeys([*_POSITION, *(name for row in rows for name in row)])
        with (
            files.replacing(self.csv) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, list(columns), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def truncate_after(self, examples_seen: int) -> int:
        """Drops the lines beyond a restored checkpoint, which a resumed run writes again.

        Returns:
            The examples seen at the last line, dropped or not.
        """
        rows = read_metrics(self.jsonl)
        kept = [row for row in rows if row["examples_seen"] <= examples_seen]
        if len(kept) < len(rows):
            files.write_text(self.jsonl, "".join(json.dumps(row) + "\n" for row in kept))
        return max((row["examples_seen"] for row in rows), default=0)


def short_name(name: str) -> str:
    """Returns a metric's name without its stage and counts: `fid` for `val/fid@797`."""
    return name.rsplit("/", 1)[-1].split("@", 1)[0]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl, also of a run that is being written or was killed while writing.

    A torn last line is left out; a damaged one before it is named in a warning and left out.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # after the last newline: nothing, or a torn line
        try:
            rows.append(_row(line))
        except ValueError:
            warnings.warn(f"{path}, line {number} is not a line of metrics and is left out.")
    return rows


def _row(line: bytes) -> dict[str, Any]:
    row = json.loads(line, object_hook=in_todays_words)
    if not isinstance(row, dict) or "examples_seen" not in row:
        raise ValueError("not a line of metrics")
    return row


def _append(path: Path, lines: bytes) -> None:
    """Adds whole lines to a file, or nothing."""
    with path.open("a+b", buffering=0) as file:  # unbuffered: a line is one write
        _drop_torn_end(file)
        end = file.seek(0, io.SEEK_END)
        try:
            if file.write(lines) < len(lines):  # as far as there was room
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
        except OSError:
            file.truncate(end)
            raise


def _drop_torn_end(file: io.FileIO) -> None:
    # A new line must not be glued to one that a kill tore.
    if file.seek(0, io.SEEK_END) == 0:
        return
    file.seek(-1, io.SEEK_END)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
