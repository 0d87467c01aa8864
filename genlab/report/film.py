"""A run's training as a film: its stored sample grids, one after the other."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.report.gather import part
from genlab.report.pictures import opened
from genlab.report.units import unit_of
from genlab.runs.folder import NotARun, Run, shown_path

if TYPE_CHECKING:
    from PIL import Image

SECONDS = 8.0
"""Length of a film of many frames."""

LAST = 2_000  # milliseconds that the last frame stays
LARGEST = 1_024  # pixels of a side; larger grids are made smaller


@dataclass(frozen=True)
class Film:
    """A film that was written.

    Attributes:
        path: Its file.
        num_frames: Grids in it.
        problems: A sentence for each grid that is left out.
    """

    path: Path
    num_frames: int
    problems: list[str]


def film_of(run: Run, target: Path | None = None, frame_ms: int | None = None) -> Film:
    """Writes the grids in a run's `samples/` as an animated GIF, the examples seen below each.

    A grid that cannot be read is named and left out.

    Args:
        run: The run.
        target: The film's file; samples/training.gif of the run without it.
        frame_ms: Milliseconds of a frame; without it, frames share eight seconds, at most half a second each.

    Raises:
        ValueError: The run has no grids, or none that can be read.
    """
    target = target or run.output("samples") / "training.gif"
    named = (path for path in run.samples.glob("samples_*.png") if re.fullmatch(r"samples_\d+", path.stem))
    grids = sorted(named, key=examples_seen)
    if not grids:
        raise ValueError(
            f"{run.samples} has no grids samples_<number>.png: they are drawn while a model of images trains."
        )
    words = f"{unit_of(part(_record(run), 'spec'))[0]} seen"
    frames, problems = [], []
    for path in grids:
        try:
            run.inside("samples", path.name)
            frames.append(captioned(path, f"{examples_seen(path):,} {words}"))
        except (OSError, ValueError, SyntaxError) as error:  # Pillow tells damage by any of them
            problems.append(f"The picture {shown_path(path)} is left out: {error}.")
    if not frames:
        raise ValueError(f"No grid in {shown_path(run.samples)} can be read. {problems[0]}")
    each = frame_ms or round(min(500.0, 1000.0 * SECONDS / len(frames)))
    target.parent.mkdir(parents=True, exist_ok=True)
    durations = [each] * (len(frames) - 1) + [max(LAST, each)]
    frames[0].save(target, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return Film(target, len(frames), problems)


def examples_seen(grid: Path) -> int:
    """Returns the examples seen that a grid's name tells."""
    return int(grid.stem.rsplit("_", 1)[1])


def captioned(grid: Path, text: str) -> Image.Image:
    """Returns a grid with a line of text below it."""
    from PIL import Image, ImageDraw, ImageFont

    picture = opened(grid).convert("RGB")
    picture.thumbnail((LARGEST, LARGEST))
    size = max(12, picture.width // 30)
    font = ImageFont.load_default(size=size)
    height = 2 * size
    frame = Image.new("RGB", (picture.width, picture.height + height), "white")
    frame.paste(picture, (0, 0))
    ImageDraw.Draw(frame).text(
        (picture.width / 2, picture.height + height / 2), text, fill="black", font=font, anchor="mm"
    )
    return frame


def _record(run: Run) -> dict[str, Any]:
    with suppress(NotARun):  # a film needs the grids alone
        return run.read()
    return {}
