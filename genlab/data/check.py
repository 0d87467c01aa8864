"""What is in a folder, a zip or a tar of images, and what training would do to them. Imports no torch."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TextIO

from genlab.data.decode import BadImage, Policy, decode
from genlab.data.image_tables import Told, find_captions, first_of
from genlab.data.parallel import over_images
from genlab.data.sources import BadSource, Source, open_source

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
        captions: What the tables of captions say; None where there are none.
        problem: Why a table of captions cannot be used, "" where it can.
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
    captions: Told | None = None
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether training would start."""
        return not self.bad and self.num_images > 0 and self.captions_ok

    @property
    def captions_ok(self) -> bool:
        """Whether there are no captions, or every image has one and every one an image."""
        found = self.captions
        return not self.problem and (found is None or not (found.alone or found.strangers))


@dataclass
class _Seen:
    """What one image, or the refusal of one, tells."""

    name: str
    digest: str = ""
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    notes: tuple[str, ...] = ()
    reason: str = ""


def check(path: str | Path, workers: int | None = None, caption_column: str = "text") -> CheckReport:
    """Decodes every image once and returns what was found.

    Args:
        path: Folder, zip or tar.
        workers: Decoding processes; None means one a core.
        caption_column: The column of a metadata.csv or metadata.jsonl that holds captions.

    Raises:
        BadSource: Where there are no images at all, with the remedy.
    """
    source = open_source(path)
    policy = Policy(image_size=None)
    results = over_images(source, partial(_look, source, policy), f"checking {source.path.name}", workers)
    seen = sorted((one for chunk in results for one in chunk), key=lambda one: one.name)
    good = [one for one in seen if not one.reason]
    captions, problem = _captions(source, caption_column)
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
        captions=captions,
        problem=problem,
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


def _captions(source: Source, column: str) -> tuple[Told | None, str]:
    try:
        return find_captions(source, column), ""
    except BadSource as error:
        return None, str(error)


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
    lines += _caption_lines(report)
    if report.proposed_size:
        lines.append(f"proposed: --data.image_size {report.proposed_size}")
    if report.ok:
        return [*lines, "ok"]
    unusable = [f"remove or replace the {len(report.bad)} unusable files"] if report.bad else []
    captions = [] if report.captions_ok else ["correct the captions"]
    return [*lines, f"not ok: {' and '.join(unusable + captions)}"]


def _caption_lines(report: CheckReport) -> list[str]:
    found = report.captions
    if found is None:
        return [f"captions: {report.problem}"] if report.problem else []
    num, captioned = sum(map(len, found.of_images)), sum(map(bool, found.of_images))
    lines = [f"captions: {num} of {captioned} images in {', '.join(found.tables)}"]
    for title, names in (
        ("images without a caption", found.alone),
        ("captions without an image", found.strangers),
    ):
        lines += [f"{title}: {len(names)}: {first_of(names)}"] if names else []
    return lines


def counted(title: str, counts: Mapping[str, int | str]) -> list[str]:
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
