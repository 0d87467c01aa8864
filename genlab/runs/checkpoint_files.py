"""Which checkpoint files of a folder are whole. Imports no torch."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Iterable
from pathlib import Path

LAST, BEST = "last.ckpt", "best.ckpt"
PREVIOUS = "previous.ckpt"  # the last one but one: what is left of the last one's damage is one save of work

FOLDER = 0x10  # the attribute's bit


def damage(path: Path) -> str:
    """Returns in words what is wrong with a checkpoint's file, "" where it is as it was written.

    A checkpoint is a zip archive, which holds a checksum of every part and ends in a table of contents: one
    changed bit is found, and so is a missing end. torch compares no checksums when it reads.
    """
    if not path.is_file():
        return "missing"
    if not path.stat().st_size:
        return "empty"
    try:
        if not zipfile.is_zipfile(path):
            return "cut short"
        with zipfile.ZipFile(path) as archive:
            # An attribute has no checksum, and torch takes a part with that of a folder for an empty one.
            folders = (part.filename for part in archive.infolist() if part.external_attr & FOLDER)
            broken = archive.testzip() or next(folders, None)
    except Exception as error:  # whatever a reader stumbles over in bytes that are not what was written
        return f"not what was written ({error})"
    return f"not what was written (checksum of {broken})" if broken else ""


def whole(paths: Iterable[Path]) -> Path | None:
    """Returns the newest undamaged one."""
    dated = [(path.stat().st_mtime_ns, path.name, path) for path in paths]
    return next((path for _, _, path in sorted(dated, reverse=True) if not damage(path)), None)


def described(path: Path) -> str:
    """Returns a damaged file's name, what is wrong with it and since when, for a message."""
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
    return f"{path.name} of {written} is {damage(path)}"
