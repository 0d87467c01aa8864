"""A run's training as a film: its stored sample grids, one after the other."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.report.gather import part
from genlab.report.units import unit_of
from genlab.runs.folder import NotARun, Run

if TYPE_CHECKING:
    from PIL import Image

SECONDS = 8.0
"""Length of a film of many frames."""

LAST = 2_000  # milliseconds that the last frame stays
LARGEST = 1_024  # pixels of a side; larger grids are made smaller


def film_of(run: Run, target: Path | None = None, frame_ms: int | None = None) -> tuple[Path, int]:
    """Writes the grids in a run's `samples/` as an animated GIF, the examples seen below each.

    Args:
        run: The run.
        target: The film's file; samples/training.gif of the run without it.
        frame_ms: Milliseconds of a frame; without it, frames share eight seconds, at most half a second each.

    Returns:
        The file and the number of frames.

    Raises:
        ValueError: The run has no grids.
    """
    grids = sorted(run.samples.glob("samples_[0-9]*.png"), key=examples_seen)
    if not grids:
        raise ValueError(
            f"{run.samples} has no grids samples_<number>.png: they are drawn while a model of images trains."
        )
    words = f"{unit_of(part(_record(run), 'spec'))[0]} seen"
    frames = [captioned(path, f"{examples_seen(path):,} {words}") for path in grids]
    each = frame_ms or round(min(500.0, 1000.0 * SECONDS / len(frames)))
    target = target or run.samples / "training.gif"
    target.parent.mkdir(parents=True, exist_ok=True)
    durations = [each] * (len(frames) - 1) + [max(LAST, each)]
    frames[0].save(target, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return target, len(frames)


def examples_seen(grid: Path) -> int:
    """Returns the examples seen that a grid's name tells."""
    return int(grid.stem.rsplit("_", 1)[1])


def captioned(grid: Path, text: str) -> Image.Image:
    """Returns a grid with a line of text below it."""
    from PIL import Image, ImageDraw, ImageFont

    with Image.open(grid) as file:
        picture = file.convert("RGB")
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
