"""What is in a folder, a zip or a tar of images, and what training would do to them. Imports no torch."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TextIO

from genlab.data.decode import BadImage, Policy, decode
from genlab.data.parallel import over_images
from genlab.data.sources import Source, open_source

_SHOWN = 10


@dataclass
class CheckReport:
    """What a check found.

    Attributes:
        path: What was checked.
        num_images: Files that look like images by their names.
        sizes: How many images have each (width, height).
        modes: How many images have each pixel format, in Pillow's names.
        classes: How many images each class folder holds; empty where there are none.
        conversions: How many images need each conversion to become 8-bit RGB.
        bad: Name of and reason against each unusable file.
        duplicates: Groups of names with equal bytes.
        proposed_size: A resolution to train at; 0 where nothing can be read.
    """

    path: str
    num_images: int
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    classes: dict[str, int] = field(default_factory=dict)
    conversions: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[str, str]] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)
    proposed_size: int = 0

    @property
    def ok(self) -> bool:
        """Whether training would start."""
        return not self.bad and self.num_images > 0


@dataclass
class _Seen:
    """What one image, or the refusal of one, tells."""

    name: str
    digest: str = ""
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    notes: tuple[str, ...] = ()
    reason: str = ""


def check(path: str | Path, workers: int | None = None) -> CheckReport:
    """Decodes every image once and returns what was found.

    Raises:
        BadSource: Where there are no images at all, with the remedy.
    """
    source = open_source(path)
    policy = Policy(image_size=None)
    results = over_images(source, partial(_look, source, policy), f"checking {source.path.name}", workers)
    seen = sorted((one for chunk in results for one in chunk), key=lambda one: one.name)
    good = [one for one in seen if not one.reason]
    sizes = Counter(one.size for one in good)
    return CheckReport(
        path=str(path),
        num_images=len(source),
        sizes=sizes,
        modes=Counter(one.mode for one in good),
        classes=_class_counts(source),
        conversions=Counter(note for one in good for note in one.notes),
        bad=[(one.name, one.reason) for one in seen if one.reason],
        duplicates=_equal(seen),
        proposed_size=propose(sizes),
    )


def propose(sizes: Counter[tuple[int, int]]) -> int:
    """Returns a resolution: the images' own where all are small and equal, else a power of two up to 256.

    The power of two is the largest one that would enlarge at most every tenth image.
    """
    shorter = sorted(min(size) for size in sizes.elements())
    if not shorter:
        return 0
    if shorter[0] == shorter[-1] <= 64:
        return shorter[0]
    limit = min(shorter[len(shorter) // 10], 256)
    return int(2 ** (limit.bit_length() - 1))


def print_report(report: CheckReport, file: TextIO | None = None) -> None:
    """Prints a report for a person."""
    for line in _lines(report):
        print(line, file=file or sys.stdout)


def _look(source: Source, policy: Policy, rows: list[int]) -> list[_Seen]:
    return [_look_at(source, policy, row) for row in rows]


def _look_at(source: Source, policy: Policy, row: int) -> _Seen:
    name, digest = source.names[row], ""
    try:
        data = source.read(row)
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        decoded = decode(data, name, policy)
    except BadImage as error:
        return _Seen(name, digest, reason=error.reason)
    return _Seen(name, digest, decoded.size, decoded.mode, decoded.notes)


def _equal(seen: list[_Seen]) -> list[list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for one in seen:
        if one.digest and not one.reason:
            groups[one.digest].append(one.name)
    return [names for names in groups.values() if len(names) > 1]


def _class_counts(source: Source) -> dict[str, int]:
    counts = Counter(source.labels or [])
    return {name: counts[label] for label, name in enumerate(source.classes)}


def _lines(report: CheckReport) -> list[str]:
    usable = report.num_images - len(report.bad)
    lines = [f"{report.path}: {report.num_images} images, {usable} usable"]
    lines += counted("class folders", report.classes)
    lines += counted("sizes", {f"{width}x{height}": n for (width, height), n in report.sizes.most_common()})
    lines += counted("pixel formats", dict(report.modes.most_common()))
    lines += counted("conversions on reading", dict(report.conversions.most_common()))
    lines += listed("unusable", [f"{name}: {reason}" for name, reason in report.bad])
    lines += listed("equal files", [" = ".join(names) for names in report.duplicates])
    if report.proposed_size:
        lines.append(f"proposed: --data.image_size {report.proposed_size}")
    return [*lines, "ok" if report.ok else f"not ok: remove or replace the {len(report.bad)} unusable files"]


def counted(title: str, counts: dict[str, int]) -> list[str]:
    """Returns how often there is each kind of something, as a line of a report or none."""
    if not counts:
        return []
    cells = [f"{name} {count}" for name, count in list(counts.items())[:_SHOWN]]
    more = [f"and {len(counts) - _SHOWN} more kinds"] if len(counts) > _SHOWN else []
    return [f"{title}: {', '.join(cells + more)}"]


def listed(title: str, entries: list[str]) -> list[str]:
    """Returns the first of some entries below their number, as lines of a report or none."""
    if not entries:
        return []
    more = [f"  and {len(entries) - _SHOWN} more"] if len(entries) > _SHOWN else []
    return [f"{title}: {len(entries)}", *(f"  {entry}" for entry in entries[:_SHOWN]), *more]
